"""The application: it serves published models with Ray Serve, and holds what training shares with it."""

__version__ = "1.0.0"
