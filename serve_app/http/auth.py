"""API keys: named, hashed at rest, valid between two dates, and read again from their files while requests run.

The plain keys are the files `API_KEY` and `API_KEY_PREVIOUS` of a folder, as in a mounted Secret. The file of named keys is a JSON
list of `{"name": "alice", "sha256": "<hex>", "not_before": "2026-01-31", "not_after": "2027-01-31T12:00:00Z",
"scopes": ["predict", "manage"]}`; the dates and the scopes are optional. A key has 256 random bits, so its sha256 without a salt
reveals nothing about it.

Every valid key has the scope `predict`, so a request for a prediction does not look at scopes. Only a named key can have the scope
`manage`, which allows a client to move the store's pointer.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from serve_app.artifacts.durable import replace_file
from serve_app.errors import IrisApiError
from serve_app.http.key_strength import weakness

log = logging.getLogger("iris_api.keys")

PREFIX = "iris_"
"""The beginning of every key; secret scanners search for it."""
MAX_FILE_BYTES = 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_PLAIN = ("API_KEY", "API_KEY_PREVIOUS")
_FIELDS = {"name", "sha256", "not_before", "not_after", "scopes"}

Scope = Literal["predict", "manage"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
PREDICT: frozenset[Scope] = frozenset({"predict"})
"""The scopes of a plain key, of an entry that names none, and of a request where no key is configured."""


class KeysError(IrisApiError):
    """The file of keys cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the name of its owner, its sha256, the times (seconds since 1970) between which it is valid, and its scopes."""

    name: str
    digest: bytes
    not_before: float = -math.inf
    not_after: float = math.inf
    scopes: frozenset[Scope] = PREDICT


Verdict = Key | Literal["missing", "wrong"]

ANONYMOUS = Key("anonymous", b"")
"""The key of every request when no key is configured."""


class Keys:
    """The keys that are valid now. Only `refresh` changes them, from one thread at a time. A broken file changes nothing.

    With `folder`, `refresh` reads the plain keys again from the files in it.
    """

    def __init__(
        self, api_key: str | None = None, file: Path | None = None, *, previous: str | None = None, folder: Path | None = None
    ) -> None:
        self._plain = _plain_keys((api_key, previous))
        self._named: tuple[Key, ...] = ()
        self._file = file
        self._folder = folder
        self._strong = api_key is not None and weakness(api_key) is None
        self._open = api_key is None and file is None
        self._content: bytes | None = None
        self._plain_content: tuple[bytes, ...] = ()
        self._logged_error = ""
        self._known = {key.digest: key for key in self._plain}
        self.refresh()

    @property
    def may_change(self) -> bool:
        """Whether the keys come from files that `refresh` reads again."""
        return self._file is not None or self._folder is not None

    def check(self, key: bytes | None, authorization: bytes | None) -> Verdict:
        """The key in the values of `X-API-Key` and `Authorization`.

        The hash of the key is looked up and compared in constant time, also for an unknown key. The timing therefore reveals
        neither the length nor the content of a key. A key that is unknown, revoked, expired or not yet valid is "wrong". When a
        request has both headers, `X-API-Key` decides, because a mesh or a gateway may add its own token as `Authorization`.
        """
        if self._open:
            return ANONYMOUS
        if key is None and authorization is not None:
            scheme, _, token = authorization.partition(b" ")
            key = token.strip() if scheme.lower() == b"bearer" else None
        if not key:
            return "missing"
        digest = hashlib.sha256(key).digest()
        known = self._known.get(digest, _UNKNOWN)
        same = hmac.compare_digest(digest, known.digest)
        return known if same and known.not_before <= time.time() < known.not_after else "wrong"

    def refresh(self) -> None:
        """Read the files again. When a file has an error, the error is logged once and the previous keys of the file stay valid."""
        errors = []
        for read in (self._read_plain, self._read_named):
            try:
                read()
            except KeysError as error:
                errors.append(str(error))
        why = "; ".join(errors)
        if why and why != self._logged_error:
            log.error("API keys cannot be read; the previous keys stay valid", extra={"why": why, "keys": len(self._known)})
        self._logged_error = why

    def _read_plain(self) -> None:
        if self._folder is None:
            return
        # API_KEY first: if the Secret changes between the two reads, one of the two names still has the old key.
        api_key, previous = (self._folder / name for name in _PLAIN)
        content = (_raw(api_key), _raw(previous) if previous.exists() else b"")  # a missing API_KEY is an error
        if content != self._plain_content:
            self._plain = _plain_keys(self._secret(name, raw) for name, raw in zip(_PLAIN, content, strict=True))
            self._plain_content = content
            self._publish()

    def _secret(self, name: str, raw: bytes) -> str:
        """The key in a file. Raises KeysError for an empty API_KEY, and for a weak key when the configured API_KEY was strong."""
        try:
            key = raw.decode().strip()
        except UnicodeDecodeError:
            raise KeysError(f"{self._folder}/{name} is not UTF-8 text") from None
        if not key and name == _PLAIN[0]:
            raise KeysError(f"{self._folder}/{name} is empty")
        weak = weakness(key) if key and self._strong else None
        if weak is not None:
            raise KeysError(f"{self._folder}/{name}: the key {weak}")
        return key

    def _read_named(self) -> None:
        if self._file is None:
            return
        raw = _raw(self._file)
        if raw != self._content:
            self._named = _parse(raw, self._file)
            self._content = raw
            self._publish()

    def _publish(self) -> None:
        self._known = {key.digest: key for key in (*self._plain, *self._named)}
        log.info("API keys were read", extra={"keys": len(self._known)})


_UNKNOWN = Key("unknown", bytes(32))


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys of a file; raises KeysError."""
    return _parse(_raw(file), file)


def make_key(name: str, *, days: float | None = None, scopes: Collection[Scope] = ()) -> tuple[str, dict[str, Any]]:
    """A new key, which is shown once, and its entry for the file; `scopes` are those beside `predict`.

    Raises KeysError for a name that is not allowed.
    """
    if not _NAME.fullmatch(name):
        raise KeysError("the name of a key must have 1 to 64 characters: letters, digits and ._@-")
    key = PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    if days is not None:
        end = datetime.fromtimestamp(time.time() + days * 86400, UTC)
        entry["not_after"] = end.isoformat(timespec="seconds").replace("+00:00", "Z")
    if PREDICT.union(scopes) != PREDICT:
        entry["scopes"] = sorted(PREDICT.union(scopes), reverse=True)
    return key, entry


def change_file(file: Path, *, add: dict[str, Any] | None = None, remove: str | None = None) -> int:
    """Add an entry or remove all entries of a name, in one step; return the number of removed entries.

    Raises KeysError, and leaves the file unchanged then.
    """
    entries = [] if not file.exists() and remove is None else orjson.loads(_checked(file))
    remaining = [entry for entry in entries if entry["name"] != remove]
    try:
        replace_file(file, orjson.dumps([*remaining, add] if add else remaining, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise KeysError(f"{file} cannot be written ({error.strerror})") from None
    return len(entries) - len(remaining)


def _plain_keys(values: Iterable[str | None]) -> tuple[Key, ...]:
    keys = [Key(name, hashlib.sha256(value.encode()).digest()) for name, value in zip(_PLAIN, values, strict=True) if value]
    return tuple(reversed(keys))  # API_KEY last, so it wins when both names have the same key


def _checked(file: Path) -> bytes:
    raw = _raw(file)
    _parse(raw, file)
    return raw


def _raw(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(f"{file} cannot be read ({error.strerror})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise KeysError(f"{file} is larger than {MAX_FILE_BYTES} bytes")
    return raw


def _parse(raw: bytes, file: Path) -> tuple[Key, ...]:
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise KeysError(f"{file} is not JSON") from None
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise KeysError(f"{file} must contain a JSON list of objects")
    keys = tuple(_key(entry, f"{file}: entry {number}") for number, entry in enumerate(document, 1))
    if len({key.digest for key in keys}) != len(keys):
        raise KeysError(f"{file} contains the same key twice; remove one of the entries")
    return keys


def _key(entry: dict[str, Any], where: str) -> Key:
    unknown = set(entry) - _FIELDS
    if unknown:  # a key with a misspelt not_after would never expire
        raise KeysError(f"{where} has an unknown field; the fields are {', '.join(sorted(_FIELDS))}")
    name, digest = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KeysError(f"{where} needs a name of 1 to 64 characters: letters, digits and ._@-")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise KeysError(f"{where} needs sha256: 64 hexadecimal digits in lower case")
    first = _date(entry.get("not_before"), -math.inf, where)
    return Key(name, bytes.fromhex(digest), first, _date(entry.get("not_after"), math.inf, where), _scopes(entry, where))


def _scopes(entry: dict[str, Any], where: str) -> frozenset[Scope]:
    """The scopes of an entry. A list without `predict` is a mistake, because every valid key may predict."""
    if "scopes" not in entry:
        return PREDICT
    scopes = entry["scopes"]
    if not isinstance(scopes, list) or not all(isinstance(scope, str) and scope in SCOPES for scope in scopes):
        raise KeysError(f"{where} needs scopes as a list of {', '.join(sorted(SCOPES))}")
    if not set(scopes) >= PREDICT:
        raise KeysError(f"{where} has scopes without predict; every key may predict, so write predict into the list")
    return frozenset(scopes)


def _date(value: Any, default: float, where: str) -> float:
    if value is None:
        return default
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise KeysError(f"{where} has a date that is not ISO 8601; write 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
