"""Ten thousand bad requests, none of which gets a server error, an undocumented answer or its own words back."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_app.artifacts.store import Store
from serve_app.http.headers import are_utf8, is_repeated
from tests.support.apps import KEY, client_of
from tests.support.asgi import Reply, ask
from tests.support.figures import note
from tests.support.models import A_FLOWER, logistic, publish_iris

WANTED = int(os.environ.get("IRIS_TEST_REQUESTS", "10000"))
MARK = "Zq7Xk"
"""In every piece of input, and in no answer."""
KNOWN = ("/", "/health", "/livez", "/readyz", "/metrics", "/model", "/model/info", "/predict", "/predict/batch")
MAX_BODY = 20_000

Request = tuple[str, str, list[tuple[bytes, bytes]], list[bytes], bytes, bool]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = Store(tmp_path_factory.mktemp("store"))
    publish_iris(store, logistic(), onnx=True)
    client = client_of(store, max_body_bytes=MAX_BODY, max_rows=50, cors_origins=("https://a.example",))
    return client.app


def generate(dice: random.Random) -> Request:
    """A request that is wrong in one place, or in several."""
    method = dice.choice(
        ["POST"] * 12 + ["GET"] * 3 + ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", MARK, "post"]
    )
    path = dice.choice(["/predict"] * 8 + ["/predict/batch"] * 5 + [*KNOWN] + [odd_path(dice) for _ in range(4)])
    headers = [(b"host", b"api.example"), (b"x-request-id", dice.choice(REQUEST_IDS))]
    if dice.random() < 0.8:
        headers.append((b"x-api-key", KEY.encode()))
    if dice.random() < 0.8:
        headers.append((b"content-type", b"application/json"))
    body = dice.choice(BODIES)(dice)
    odd = [odd_header(dice, body) for _ in range(dice.choice([0, 0, 1, 1, 2, 5]))]
    if dice.random() < 0.7:  # else some headers come twice, and the request is refused for that alone
        odd = list(dict(odd).items())
        headers = [header for header in headers if header[0] not in dict(odd)]
    headers += odd
    dice.shuffle(headers)
    cuts = sorted(dice.randrange(len(body) + 1) for _ in range(dice.choice([0, 0, 0, 1, 3])))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    query = dice.choice([b"", b"", b"", f"key={MARK}&x=%ff".encode(), b"&&&==%zz", b"\xff" * 50])
    return method, path, headers, pieces, query, dice.random() < 0.02


REQUEST_IDS = [b"", b"a" * 129, MARK.encode() + b"\r\nSet-Cookie: a=b", b"\xff\xfe", b"<" + MARK.encode() + b">", b"a b", b"\0"]


def odd_path(dice: random.Random) -> str:
    return dice.choice(
        [
            f"/{MARK}",
            f"/predict/{MARK}",
            "/predict/",
            "//predict",
            "/PREDICT",
            "/predict/../model",
            "/model/",
            "/model/info/",
            "/../../etc/passwd",
            "/static-offline-docs/../../../../etc/passwd",
            "/static-offline-docs/%2e%2e/%2e%2e/etc/passwd",
            f"/static-offline-docs/{MARK}",
            "/docs/",
            "/" + "a" * 8000,
            "/\0",
            "/%00",
            "/ü/\udcff",
            "",
            "*",
            f"/metrics;{MARK}",
            "/-/healthz",
            "/api/jobs",
        ]
    )


def odd_header(dice: random.Random, body: bytes) -> tuple[bytes, bytes]:
    mark = MARK.encode()
    return dice.choice(
        [
            (
                b"content-type",
                dice.choice([b"text/plain", b"", b"\xff", b"application/json;" + mark, b"multipart/form-data; boundary=x"]),
            ),
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"content-length", dice.choice([b"-1", b"abc", b"1e3", b"9" * 30, b"0", b"%d" % (len(body) + 1), "²".encode()])),
            (b"content-encoding", dice.choice([b"gzip", b"br", b"gzip, gzip", b"identity", mark, b"\xff", b"deflate"])),
            (b"x-api-key", dice.choice([mark, b"", b"\xff" * 40, KEY[:-1].encode(), KEY.encode() + b"\0", b"k" * 100_000])),
            (b"authorization", dice.choice([b"Bearer", b"Bearer " + mark, b"Basic \xff", mark, b"bearer " + b"x" * 50_000])),
            (b"origin", dice.choice([b"https://a.example", b"null", mark, b"https://a.example.evil", b"\xff"])),
            (b"access-control-request-method", dice.choice([b"POST", mark, b""])),
            (b"access-control-request-headers", mark),
            (b"x-forwarded-for", dice.choice([mark, b"127.0.0.1", b"," * 1000, b"\xff"])),
            (b"x-forwarded-proto", mark),
            (b"if-none-match", dice.choice([mark, b"*", b'W/"', b"," * 500])),
            (b"transfer-encoding", b"chunked"),
            (b"range", b"bytes=0-" + mark),
            (b"accept", dice.choice([mark, b"", b"application/xml", b"\xff"])),
            (b"expect", b"100-continue"),
            (b"upgrade", b"websocket"),
            (b"x-http-method-override", b"DELETE"),
            (mark.lower(), b"v" * dice.choice([1, 100_000])),
            (b"x-request-timeout-seconds", dice.choice([b"0", b"-1", mark])),
        ]
    )


def odd_value(dice: random.Random) -> Any:
    return dice.choice(
        [
            *(
                None,
                True,
                False,
                [],
                {},
                "",
                MARK,
                [MARK],
                {MARK: 1},
                -1,
                20.0001,
                1e308,
                -1e308,
                10**400,
                "1e999",
                "0x10",
                "\uff11\uff12",
            ),
            *(
                "NaN",
                "Infinity",
                float("nan"),
                float("inf"),
                "5.1",
                " 5 ",
                "5,1",
                "\u0000",
                "\ud800",
                "9" * 5000,
                dice.random() * 1e6,
            ),
        ]
    )


def odd_row(dice: random.Random) -> Any:
    row: dict[str, Any] = dict(A_FLOWER)
    for _ in range(dice.choice([1, 1, 2, 4])):
        name = dice.choice([*A_FLOWER, MARK, "", "__proto__", "sepal_length\0"])
        if dice.random() < 0.3:
            row.pop(name, None)
        else:
            row[name] = odd_value(dice)
    return dice.choice([row] * 8 + [[row], MARK, None, 5, [row, row]])


def odd_batch(dice: random.Random) -> Any:
    rows = [odd_row(dice) if dice.random() < 0.5 else A_FLOWER for _ in range(dice.choice([0, 1, 2, 30, 60]))]
    return dice.choice(
        [{"instances": rows}] * 6 + [{"instances": rows, MARK: 1}, {"instances": odd_value(dice)}, {}, rows, {MARK: rows}]
    )


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


def mutated(dice: random.Random) -> bytes:
    raw = bytearray(as_json(A_FLOWER if dice.random() < 0.5 else {"instances": [A_FLOWER] * 3}))
    for _ in range(dice.choice([1, 2, 8])):
        at = dice.randrange(len(raw))
        match dice.randrange(4):
            case 0:
                raw[at] = dice.randrange(256)
            case 1:
                del raw[at : at + dice.randrange(1, 10)]
            case 2:
                raw[at:at] = dice.randbytes(dice.randrange(1, 5))
            case _:
                raw[at:at] = raw[: dice.randrange(1, 20)]
        if not raw:
            return b""
    return bytes(raw)


BODIES: list[Callable[[random.Random], bytes]] = [
    *[lambda dice: as_json(odd_row(dice))] * 4,
    *[lambda dice: as_json(odd_batch(dice))] * 3,
    *[mutated] * 4,
    lambda dice: dice.randbytes(dice.randrange(200)),
    lambda dice: dice.choice([b"[", b'{"a":', b'{"instances":[']) * dice.choice([10, 1000, 5000]),
    lambda dice: b" " * dice.choice([0, MAX_BODY, MAX_BODY + 1]),
    lambda dice: gzip.compress(dice.choice([b"", as_json(odd_row(dice)), b" " * 1_000_000, b"[" * 10_000]))[
        : dice.choice([5, 10**6])
    ],
    lambda dice: as_json(odd_row(dice)).decode().encode(dice.choice(["utf-16", "utf-32", "utf-8-sig"])),
    lambda dice: dice.choice([b"null", b"1", b'"' + MARK.encode() + b'"', b"{}", b"[]", b"true", b"NaN", b"-", b"\0", b"{}{}"]),
    lambda dice: f"sepal_length={MARK}&sepal_width=1".encode(),
    lambda dice: f"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;{MARK}</a>".encode(),
]


def documented(app: Any) -> dict[tuple[str, str], set[int]]:
    paths = app.openapi()["paths"]
    return {
        (method.upper(), path): set(map(int, found["responses"])) for path, item in paths.items() for method, found in item.items()
    }


def what_is_wrong(reply: Reply, request: Request, allowed: set[int]) -> str | None:
    body = reply.body
    if (reply.starts, reply.ends) != (1, 1):
        return "not one whole answer"
    if reply.status not in allowed:
        return "a status that is not documented"
    for name, value in reply.headers:
        if name == b"access-control-allow-headers" and b"\r" not in value and b"\n" not in value:
            continue  # the response to a preflight names the headers that the browser asked for
        if b"\r" in value or b"\n" in value or MARK.encode().lower() in name + value.lower():
            return f"header {name!r} repeats the input"
    if MARK.encode() in body:
        return "the body repeats the input"
    if KEY.encode() in body:
        return "the body holds the key"
    if reply.header(b"x-content-type-options") != b"nosniff" or not reply.header(b"x-request-id"):
        return "headers are missing"
    if reply.status >= 400 and request[0] != "HEAD" and reply.header(b"content-type") == b"application/problem+json":
        problem = orjson.loads(body)
        if problem["status"] != reply.status or not {"type", "title", "detail", "code"} <= set(problem):
            return "the problem has another form"
        if len(body) > 20_000:
            return "the answer is longer than any question deserves"
    elif reply.status >= 400 and request[0] not in ("HEAD", "OPTIONS"):
        return f"the error is no problem: {body[:80]!r}"
    return None


async def test_ten_thousand_bad_requests_get_documented_refusals(app: Any) -> None:
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    known = documented(app)
    dice = random.Random(2026)
    bad = 0
    while bad < WANTED:
        request = generate(dice)
        method, path, headers, pieces, query, leaves = request
        reply = await ask(app, method, path, headers, pieces, query=query, leaves=leaves)
        if reply.status == 499 or (leaves and reply.starts == 0):
            continue  # nobody is there to be answered
        statuses[reply.status] += 1
        bad += not 200 <= reply.status < 400
        documented_as = "GET" if method == "HEAD" else method
        allowed = known.get((documented_as, path)) or {404, 405, 200}  # 200: docs, a preflight
        if method == "OPTIONS":
            allowed = allowed | {400}  # a preflight from an origin that may not
        if any(name == b"content-length" and value.isdigit() and int(value) > MAX_BODY for name, value in headers):
            allowed = allowed | {413}  # at every address
        if not are_utf8(headers) or is_repeated(headers):
            allowed = allowed | {400}  # at every address
        problem = what_is_wrong(reply, request, allowed)
        if problem is not None:
            wrong.append(f"{reply.status} {method} {path[:60]!r} {[h for h in headers if len(h[1]) < 80]}: {problem}")
    note(f"{sum(statuses.values())} requests: {dict(sorted(statuses.items()))}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:20])
    assert not [status for status in statuses if status >= 500]
    assert {400, 401, 403, 404, 405, 413, 415, 422} <= set(statuses)
    reply = await ask(app, "POST", "/predict", [(b"x-api-key", KEY.encode())], [as_json(A_FLOWER)])
    assert (reply.status, orjson.loads(reply.body)["prediction"]) == (200, "setosa")


async def test_refusals_without_a_right_key_are_all_alike(app: Any) -> None:
    """Neither status nor body nor headers tell whether a key was nearly right, expired or never existed, or what was asked."""
    for path in ("/predict", "/predict/batch"):
        seen: dict[bytes, set[tuple[int, bytes, tuple[bytes, ...]]]] = {b"missing": set(), b"wrong": set()}
        for body in (b"", b"{", as_json(A_FLOWER), b"x" * 100):
            for kind, key in ((b"missing", b""), (b"wrong", KEY[:-1].encode()), (b"wrong", b"x"), (b"wrong", b"\xff" * 1000)):
                reply = await ask(app, "POST", path, [(b"x-api-key", key)], [body])
                seen[kind].add((reply.status, reply.body, tuple(sorted(name for name, _ in reply.headers))))
        assert {kind: [status for status, _, _ in found] for kind, found in seen.items()} == {b"missing": [401], b"wrong": [403]}


def test_the_right_file_is_read(tmp_path: Path) -> None:
    """The generator makes the same requests in every run, so a failure can be looked at."""
    assert [generate(random.Random(7)) for _ in range(3)] == [generate(random.Random(7)) for _ in range(3)]
