"""The options of the HTTP side. They have no defaults: `Settings.http_options` derives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve_app.artifacts.fields import Unknown, UnknownFields
from serve_app.http.rate_limit import RateLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """The part of the settings that the HTTP side needs; `serve_app.settings` describes each of them.

    `api_key_folder` is the folder with the files of the two plain keys, which are read again while requests run; None when the keys
    come from the environment. `sends_request_id` is False under Ray Serve, because Serve's middleware adds the id to the response.
    """

    api_key: str | None
    api_key_previous: str | None
    api_key_folder: Path | None
    api_keys_file: Path | None
    rate_limits: RateLimits
    cors_origins: tuple[str, ...]
    model_name: str
    model_dir: Path
    cache_dir: Path
    max_body_bytes: int
    max_row_bytes: int
    max_body_seconds: float
    max_rows: int
    max_in_flight: int
    max_wait_seconds: float
    unknown: Unknown
    unknown_fields: UnknownFields
    root_path: str
    health_route: str
    predict_route: str
    poll_seconds: float
    log_every: int
    sends_request_id: bool
    public_pages: bool
    console_actions: bool
