"""`/docs` and `/redoc`: the pages over the OpenAPI document. Every address in them is relative, so they work below any path."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

STATIC = "static-offline-docs"
"""Where `fastapi_offline` mounts scripts and styles: beside the pages."""
OPENAPI = "openapi.json"


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
            redoc_js_url=f"{STATIC}/redoc.standalone.js",
            with_google_fonts=False,
            redoc_favicon_url=favicon,
        )
