"""The path below which a proxy in front shows the application: `https://example.org/api/v1/docs` for `/docs`.

A proxy either strips the prefix or sends the whole path. The pages name each other and the OpenAPI document relatively, so a proxy
that strips the prefix needs to tell nothing. The application learns of the prefix by the setting IRIS_ROOT_PATH, by the route
prefix of Ray Serve, and by `X-Forwarded-Prefix` of a request.

The header is believed from everybody, because it has no power: it must be a plain path, it removes only itself from the path of the
request that holds it, and the response names it only as a path of this same host.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from serve_app.http.responses import Scope

FORWARDED_PREFIX = b"x-forwarded-prefix"
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){1,8}")
"""Segments of letters, digits and `._~-` that begin with no dot: neither `..` nor `//`, nothing that HTML, JSON or a header takes
for more than text."""


def is_prefix(text: str) -> bool:
    """Whether a text is a path that can be the prefix of all paths of the application."""
    return _PREFIX.fullmatch(text) is not None


def path_below(scope: Scope) -> str:
    """The path of a request below the prefix that is known so far (`root_path`), as the app's routes have it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def add_prefix(scope: Scope, root_path: str, paths: Collection[str]) -> bool:
    """Put the prefix into the request's `root_path`, and into its path as ASGI wants it; whether there is one.

    `root_path` is the setting, `paths` are those of the app. A prefix in the path is what a proxy did not strip, unless the path is
    one of the app's.
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
    """The path in `X-Forwarded-Prefix`, of several proxies that of the outermost; empty when there is none that is believed."""
    value = next((value for name, value in scope["headers"] if name == FORWARDED_PREFIX), b"")
    prefix = value.partition(b",")[0].strip().rstrip(b"/")
    text = prefix.decode("latin-1")
    return text if is_prefix(text) else ""
