"""The download of one file from a web server. It resumes after a broken connection, and refuses redirects to plain http."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import requests
import urllib3

from serve_app.errors import BackendUnavailable, UsageError
from serve_app.tables.address import check_plain_http, redacted
from serve_app.tables.attempts import Attempts
from serve_app.tables.network_errors import unknown_host, unreachable, untrusted
from serve_app.tables.scratch import Scratch

TIMEOUTS = (10, 60)
"""Time limits in seconds for the connection and for silence of the server."""

MAX_REDIRECTS = 5
BLOCK = 1 << 18

_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Status codes of temporary errors."""

Advance = Callable[[int], object]
"""Called with the number of added bytes; the number is negative when the download starts again."""


class _Broken(Exception):
    """An attempt failed with a temporary error; the message names it."""


class _Session(requests.Session):
    """Follows redirects from https only to https."""

    def __init__(self, uri: str, *, allow_http: bool) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        self.verify = os.environ.get("SSL_CERT_FILE") or True  # REQUESTS_CA_BUNDLE takes precedence in requests
        self._name, self._plain, self._allow_http = redacted(uri), urlsplit(uri).scheme.lower() == "http", allow_http

    def get_adapter(self, url: str) -> Any:
        place = urlsplit(url)
        if place.scheme == "http":
            if not self._plain:
                raise UsageError(
                    f"{self._name} is redirected to plain http at {place.hostname}, which is refused: name its https address"
                )
            check_plain_http(self._name, place.hostname or "", allowed=self._allow_http)
        return super().get_adapter(url)


@dataclass(slots=True)
class _Download:
    """A running download: `done` of `total` bytes are written; `validator` names this version of the content."""

    file: IO[bytes]
    done: int = 0
    total: int | None = None
    validator: str = ""
    encoding: str = ""
    stamp: int = 0

    def headers(self) -> dict[str, str]:
        """The headers of the next request: for the rest of this version of the content if possible, otherwise for all of it."""
        plain = {"Accept-Encoding": "identity", "User-Agent": "iris-api"}
        if not (self.done and self.validator):
            return plain
        return {**plain, "Range": f"bytes={self.done}-", "If-Range": self.validator}

    def begin(self, response: requests.Response) -> None:
        """Discard the written bytes, because `response` starts with the first byte of the content."""
        self.file.seek(0)
        self.file.truncate()
        length = response.headers.get("Content-Length", "")
        self.done, self.total = 0, int(length) if length.isdigit() else None
        self.validator, self.stamp = _validator(response.headers), _stamp(response.headers)
        self.encoding = response.headers.get("Content-Encoding", "").strip().lower()


def download(uri: str, target: Path, scratch: Scratch, *, allow_http: bool, advance: Advance, expect: Advance) -> None:
    """Write the file at a web address to `target`; it calls `expect` with the size if the server sends it.

    The file gets the time stamp of its content on the server. Raises UsageError or BackendUnavailable.
    """
    name = redacted(uri)
    with _Session(uri, allow_http=allow_http) as session, open(target, "wb") as file:
        state = _Download(file)
        attempts = Attempts()
        while True:
            before = state.done
            try:
                _attempt(session, uri, state, scratch, advance, expect)
                break
            except _Broken as error:
                if attempts.failed(state.done - before):
                    raise unreachable(name, f"{error}, {attempts.failures} times, after {state.done:,} bytes") from None
                attempts.pause()
    if state.encoding in ("gzip", "x-gzip"):
        _unpack(name, target, scratch)
    os.utime(target, ns=(state.stamp, state.stamp))


def _attempt(session: _Session, uri: str, state: _Download, scratch: Scratch, advance: Advance, expect: Advance) -> None:
    """Continue where the last attempt ended; raises _Broken when another attempt may succeed."""
    name = redacted(uri)
    with _get(session, uri, state.headers()) as response:
        _check_status(name, response)
        if response.status_code == 206 and not _continues(response, state):
            state.validator = ""
            raise _Broken("the server sent another part of the file")
        if response.status_code != 206:
            advance(-state.done)
            scratch.used -= state.done
            state.begin(response)
            if state.encoding not in ("", "identity", "gzip", "x-gzip"):
                raise UsageError(
                    f"{name} has the content encoding {state.encoding[:20]}, which is not supported: name another address of it"
                )
            if state.total is not None:
                scratch.reserve(name, state.total)
                expect(state.total)
        try:
            for block in response.raw.stream(BLOCK, decode_content=False):
                if not state.done:
                    _check_page(name, response, block)
                scratch.add(name, len(block))
                state.file.write(block)
                state.done += len(block)
                advance(len(block))
        except (urllib3.exceptions.HTTPError, requests.RequestException, ConnectionError, TimeoutError):
            raise _Broken("the connection broke") from None
        if state.total is not None and state.done < state.total:
            raise _Broken("the connection broke")


def _get(session: _Session, uri: str, headers: Mapping[str, str]) -> requests.Response:
    """The response, before its body is read. Messages do not contain the query of an address, which may be a signature."""
    name, host = redacted(uri), urlsplit(uri).hostname or ""
    try:
        return session.get(uri, headers=dict(headers), stream=True, timeout=TIMEOUTS)
    except requests.exceptions.SSLError:
        raise untrusted(name) from None
    except requests.exceptions.ProxyError:
        raise unreachable(name, "the proxy does not answer, or it refuses the host") from None
    except requests.exceptions.TooManyRedirects:
        raise UsageError(f"{name} is redirected more than {MAX_REDIRECTS} times: name the address of the file itself") from None
    except requests.exceptions.ConnectTimeout:
        raise unreachable(name, f"{host}: the connection timed out") from None
    except requests.exceptions.ConnectionError as error:
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        if isinstance(reason, urllib3.exceptions.NameResolutionError):
            raise unknown_host(name, host) from None
        if isinstance(reason, urllib3.exceptions.NewConnectionError) and not headers.get("Range"):
            raise unreachable(name, f"{host}: the connection was refused") from None
        raise _Broken("the connection broke") from None
    except requests.exceptions.Timeout:
        raise _Broken(f"the server was silent for {TIMEOUTS[1]} s") from None
    except (requests.exceptions.RequestException, ValueError):
        raise UsageError(f"{name} is not an address of a file: write https://HOST/PATH") from None


def _check_status(name: str, response: requests.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status in _PASSING:
        raise _Broken(f"the server answered {status}")
    if status == 416:
        raise _Broken("the file has become shorter")
    sentences = {
        401: "needs a user name and a password: put them into the file that NETRC names, or use a signed address",
        403: "is refused (403): its signature may have expired; create a new signed address, or get permission",
        404: "does not exist (404): correct the address",
        410: "no longer exists (410): correct the address",
    }
    raise UsageError(f"{name} {sentences.get(status, f'was answered with {status}: correct the address')}")


def _check_page(name: str, response: requests.Response, block: bytes) -> None:
    if response.headers.get("Content-Type", "").lower().startswith("text/html") and block.lstrip()[:1] == b"<":
        raise UsageError(
            f"{name} is a web page, not a table: name the address of the file itself, for example that of the button 'Raw'"
        )


def _continues(response: requests.Response, state: _Download) -> bool:
    """Whether the response continues where the last attempt ended, and the file has the same size."""
    start, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    return start.partition("-")[0] == str(state.done) and (state.total is None or total in ("*", str(state.total)))


def _validator(headers: Mapping[str, str]) -> str:
    """The value of `If-Range` for this version of the content; empty when the server sends no reliable value."""
    if headers.get("Accept-Ranges", "").lower() == "none":
        return ""
    tag = headers.get("ETag", "")
    if tag.startswith('"'):
        return tag
    changed, now = _date(headers.get("Last-Modified")), _date(headers.get("Date"))
    # Two versions within a minute can have the same time.
    return headers["Last-Modified"] if changed and now - changed >= 60 else ""


def _stamp(headers: Mapping[str, str]) -> int:
    """A time stamp in nanoseconds that changes with the content: its time, and a hash of its tag as the fraction."""
    return int(_date(headers.get("Last-Modified"))) * 10**9 + zlib.crc32(headers.get("ETag", "").encode()) % 10**9


def _date(text: str | None) -> float:
    """Seconds since 1970; 0 for a text that is not a date."""
    try:
        return max(0.0, parsedate_to_datetime(text or "").timestamp())
    except (ValueError, OverflowError):
        return 0.0


def _unpack(name: str, target: Path, scratch: Scratch) -> None:
    """Unpack a file that the server compressed for the transfer; the reader of the table unpacks a compressed file itself."""
    packed = target.with_name(".packed")
    target.rename(packed)
    try:
        with gzip.open(packed) as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                scratch.add(name, len(block))
                file.write(block)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise BackendUnavailable(f"{name} cannot be unpacked: {error.strerror}") from None
        raise UsageError(
            f"the server says that {name} has the encoding gzip, which is wrong: name another address of the file"
        ) from None
    scratch.used -= packed.stat().st_size
    packed.unlink()
