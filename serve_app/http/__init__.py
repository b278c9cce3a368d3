"""The ASGI side: a plain FastAPI application over a slot, testable without Ray."""
