"""Keys of clients, made as `iris-api keys make` makes them."""

from __future__ import annotations

from pathlib import Path

from serve_app.http.auth import Scope, change_file, make_key


def add_key(file: Path, name: str, *scopes: Scope) -> str:
    """Add a key to the key file, and return it; `scopes` are those beside `predict`."""
    key, entry = make_key(name, scopes=scopes)
    change_file(file, add=entry)
    return key
