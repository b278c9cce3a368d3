"""`/docs` and `/redoc`: the pages for the OpenAPI document. Every address in them is relative, so they work behind any prefix."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from starlette.routing import Route

STATIC = "static-offline-docs"
"""The path where `fastapi_offline` mounts scripts and styles."""
OPENAPI = "openapi.json"
REDOC = f"{STATIC}/redoc.standalone.js"
_REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""The only external address in the scripts of the two pages: an image below the menu of ReDoc."""


def install_documentation(app: FastAPI) -> None:
    """Add the two pages; their scripts and styles come from this application."""
    favicon = f"{STATIC}/favicon.png"

    @app.get("/docs", include_in_schema=False)
    async def swagger_ui() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=OPENAPI,
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=favicon,
        )

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> HTMLResponse:
        return get_redoc_html(
            openapi_url=OPENAPI,
            title=f"{app.title} - ReDoc",
            redoc_js_url=REDOC,
            with_google_fonts=False,
            redoc_favicon_url=favicon,
        )

    def redoc_script(_: Request) -> Response:
        file = Path(fastapi_offline.__file__).parent / "static" / "redoc.standalone.js"
        script = file.read_bytes().replace(_REDOC_LOGO, favicon.encode())
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "max-age=3600"})

    app.router.routes.insert(
        0, Route(f"/{REDOC}", redoc_script, include_in_schema=False)
    )  # before the folder that holds the script
