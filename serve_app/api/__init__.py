"""The HTTP side: a plain FastAPI app over a slot, testable without Ray."""
