"""Buckets of Google Cloud Storage and S3 as pyarrow filesystems, with the settings of the clouds' own tools.

Keys are not encoded, like for `gcloud storage` and `aws s3`: an address contains spaces, `%`, `#` and letters of any language as
they are.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs as arrow

from serve_app.errors import UsageError
from serve_app.tables.address import check_plain_http, redacted, scheme, without_user
from serve_app.tables.network_errors import missing, unknown_host, unreachable

CONNECT_SECONDS = 10
"""Time limit for a connection."""

SILENT_SECONDS = 60
"""Time limit for silence of an S3 server. Google's client has its own limit of 120 seconds."""

RETRY_SECONDS = 20
"""Time in which Google's client retries a request after a temporary error."""

_OPTIONS = ("region", "scheme", "endpoint_override", "anonymous", "force_virtual_addressing")
"""Options that may follow `?` in an address, as in pyarrow's `FileSystem.from_uri`. Any other `?` is part of a key."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A parsed address: bucket and key, with optional options and credentials."""

    name: str
    path: str
    options: Mapping[str, str]
    user: str = ""
    password: str = ""


def open_bucket(uri: str, *, allow_http: bool) -> tuple[Any, str]:
    """The filesystem of an address, and the path in it, after a test connection; raises UsageError or BackendUnavailable."""
    bucket = parse(uri)
    connect: Callable[..., Any] = _s3 if scheme(uri) == "s3" else _google
    return connect(redacted(uri), bucket, allow_http), bucket.path


def parse(uri: str) -> Bucket:
    """The parts of an address; raises UsageError when it names no bucket, or names a version of an object."""
    rest = uri.partition("://")[2]
    place = without_user(rest)
    user, _, password = rest[: len(rest) - len(place)].rstrip("@").partition(":")
    path, question, query = place.rpartition("?")
    options = dict(parse_qsl(query, keep_blank_values=True)) if question else {}
    if "versionId" in options or "generation" in options:
        raise UsageError(
            f"{redacted(uri)} names a version, but only the newest version can be read: copy the version that you want, "
            "or name its signed https:// address"
        )
    if not options or not all(name in _OPTIONS for name in options):
        path, options = place, {}
    name = path.partition("/")[0]
    if not name:
        raise UsageError(f"{redacted(uri)} names no bucket: write {scheme(uri)}://BUCKET/KEY")
    return Bucket(name, path.rstrip("/"), options, unquote(user), unquote(password))


def _s3(name: str, bucket: Bucket, allow_http: bool) -> Any:
    endpoint = (
        bucket.options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    )
    plain, host = _endpoint(endpoint, bucket.options.get("scheme"))
    region = bucket.options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    proxy = _reach(name, host or f"s3.{region or 'us-east-1'}.amazonaws.com", plain=plain, allow_http=allow_http)
    if not host and "region" not in bucket.options:
        region = _region(name, bucket.name, region)
    options: dict[str, Any] = {}
    if host:
        options = {"endpoint_override": host, "scheme": "http" if plain else "https"}
        options["force_virtual_addressing"] = _flag(bucket, "force_virtual_addressing")
    if bucket.user:
        options |= {"access_key": bucket.user, "secret_key": bucket.password}
    return arrow.S3FileSystem(
        region=region,
        anonymous=_flag(bucket, "anonymous"),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=SILENT_SECONDS,
        proxy_options=proxy,
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
        **options,
    )


def _region(name: str, bucket: str, fallback: str | None) -> str | None:
    """The region of a bucket, which S3 returns without credentials."""
    try:
        region: str = arrow.resolve_s3_region(bucket)
    except OSError as error:
        if "not found" in str(error):
            raise missing(name) from None
        return fallback
    return region


def _google(name: str, bucket: Bucket, allow_http: bool) -> Any:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    plain, host = _endpoint(bucket.options.get("endpoint_override") or emulator, bucket.options.get("scheme"))
    _reach(name, host or "storage.googleapis.com", plain=plain, allow_http=allow_http)
    if bucket.user not in ("", "anonymous"):
        raise UsageError(f"{name} contains a user name: set GOOGLE_APPLICATION_CREDENTIALS, or write gs://anonymous@BUCKET/KEY")
    options = {"endpoint_override": host, "scheme": "http" if plain else "https"} if host else {}
    return arrow.GcsFileSystem(
        anonymous=bool(emulator or bucket.user) or _flag(bucket, "anonymous"),
        retry_time_limit=timedelta(seconds=RETRY_SECONDS),
        **options,
    )


def _flag(bucket: Bucket, option: str) -> bool:
    return bucket.options.get(option, "").lower() in ("1", "true")


def _endpoint(text: str, named_scheme: str | None) -> tuple[bool, str]:
    """Whether an endpoint uses plain http, and its host and port; the text may have a scheme."""
    written, separator, rest = text.strip().partition("://")
    host = (rest if separator else written).rstrip("/")
    return ((named_scheme or (written if separator else "https")).lower() == "http", host)


def _reach(name: str, endpoint: str, *, plain: bool, allow_http: bool) -> str | None:
    """Open and close a connection to the server or its proxy; returns the address of the proxy, or None.

    The clients of pyarrow retry a failed connection for minutes, and their messages do not name the host.
    """
    place = urlsplit(f"//{endpoint}")
    host, kind = place.hostname or endpoint, "http" if plain else "https"
    if plain:
        check_plain_http(name, host, allowed=allow_http)
    proxy = urllib.request.getproxies().get(kind)
    if proxy and not urllib.request.proxy_bypass(host):
        place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        kind = place.scheme
    else:
        proxy = None
    address = (place.hostname or endpoint, place.port or (80 if kind == "http" else 443))
    try:
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
    except socket.gaierror:
        raise unknown_host(name, address[0]) from None
    except OSError as error:
        why = "the connection timed out" if isinstance(error, TimeoutError) else error.strerror or "no connection"
        raise unreachable(name, f"{address[0]} port {address[1]}: {why}") from None
    return proxy
