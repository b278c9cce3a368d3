"""Where models come from."""

from __future__ import annotations

from typing import Protocol

from serve_app.artifacts.bundle import Bundle


class Source(Protocol):
    """Where models come from: the store, or a registry."""

    def pointer(self) -> str | None:
        """What should be served, as a string that changes when it does; None when there is no model. Raises BundleRefused."""

    def read(self, pointer: str) -> Bundle:
        """The verified bundle that `pointer` names. Raises BundleRefused."""
