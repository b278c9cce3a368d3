"""The path prefix under which a proxy publishes the application, such as `/api/v1` in `https://example.org/api/v1/docs`.

A proxy either strips the prefix or sends the whole path. The pages link to each other and to the OpenAPI document with relative
addresses, so a proxy that strips the prefix need not send it. The application gets the prefix from the setting IRIS_ROOT_PATH, from
the route prefix of Ray Serve, and from the header `X-Forwarded-Prefix` of a request.

The application accepts the header from every client, because the header can do no harm: it must be a plain path, it changes only
the path of its own request, and the response contains it only as a path of the same host.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from serve_app.http.responses import Scope

FORWARDED_PREFIX = b"x-forwarded-prefix"
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){1,8}")
"""Segments of letters, digits and `._~-` that do not begin with a dot. They exclude `..`, `//`, and every character that HTML, JSON
or a header does not read as plain text."""


def is_prefix(text: str) -> bool:
    """Whether a text can be the prefix of all paths of the application."""
    return _PREFIX.fullmatch(text) is not None


def path_below(scope: Scope) -> str:
    """The path of a request below its `root_path`, as in the app's routes."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def add_prefix(scope: Scope, root_path: str, paths: Collection[str]) -> bool:
    """Add the prefix to the `root_path` and the path of a request, as ASGI requires; return whether there is a prefix.

    `root_path` is the setting and `paths` are the paths of the app. When the path begins with the prefix, the proxy did not strip
    it, unless the path is one of `paths`.
    """
    path, root = path_below(scope), scope.get("root_path", "")
    for prefix in (_forwarded_prefix(scope), root_path):
        if not prefix:
            continue
        if path not in paths and (path == prefix or path.startswith(f"{prefix}/")):
            scope["root_path"] = f"{root}{prefix}"
            if path == prefix:
                scope["path"] += "/"
        else:
            scope["root_path"], scope["path"] = f"{prefix}{root}", f"{prefix}{root}{path}"
        return True
    return False


def _forwarded_prefix(scope: Scope) -> str:
    """The first path in `X-Forwarded-Prefix`, which the outermost proxy wrote; empty when it is missing or invalid."""
    value = next((value for name, value in scope["headers"] if name == FORWARDED_PREFIX), b"")
    prefix = value.partition(b",")[0].strip().rstrip(b"/")
    text = prefix.decode("latin-1")
    return text if is_prefix(text) else ""
