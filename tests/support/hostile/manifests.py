"""Bundles whose digests are right, and whose manifest, golden rows or metrics are wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES
from serve_app.artifacts.names import GOLDEN, JOBLIB, MANIFEST, METRICS, ONNX, SEAL
from tests.support.hostile.cases import Case, anything, case, good, proven, put
from tests.support.models import bundle_files, forest


def manifests() -> Iterator[Case]:
    """Manifests that prove themselves and are wrong."""
    files, manifest = good()
    document = orjson.loads(manifest)
    listed = document["files"]

    def with_bytes(raw: bytes) -> Callable[[Path], str]:
        return lambda root: put(root, files, raw)

    def with_changes(**changes: Any) -> Callable[[Path], str]:
        return with_bytes(orjson.dumps({**document, **changes}, option=orjson.OPT_NON_STR_KEYS))

    raws = {
        "empty": b"",
        "no JSON": b"version: 2",
        "half": manifest[: len(manifest) // 2],
        "not UTF-8": b'{"format": 1, "x": "\xff\xfe"}',
        "UTF-16": manifest.decode().encode("utf-16"),
        "NUL": b"\0" * 100,
        "NaN": b'{"format": NaN}',
        "deep lists": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a number of a million digits": b'{"format": ' + b"1" * 1_000_000 + b"}",
        "a pickle": pickle.dumps(document),
        "two documents": manifest + manifest,
    }
    for name, raw in raws.items():
        yield case(f"manifest: {name}", "manifest format", with_bytes(raw))
    for raw in (b"null", b"true", b"[]", b'"text"', b"1"):
        yield case(f"manifest is {raw!r}", "manifest", with_bytes(raw))
    huge = orjson.dumps({**document, "note": "x" * MAX_MANIFEST_BYTES})
    yield case("manifest of more than four megabytes", "digest", with_bytes(huge))
    for value in anything(None, 0, 2, 1.5, "1", True, [], -1):
        if value is not True:  # equal to 1
            yield case(f"format {value!r}", "format", with_changes(format=value))
    for value in anything(None, [], {}, "model.joblib", 5):
        yield case(f"files are {value!r}", "manifest", with_changes(files=value))
    for name in (
        "../model.joblib",
        "/etc/passwd",
        "a/b",
        ".hidden",
        "",
        MANIFEST,
        SEAL,
        "x" * 200,
        "a\0b",
        "a b",
        "ä",
        "..",
        "-rf",
    ):
        yield case(f"lists a file {name[:30]!r}", "manifest", with_changes(files={**listed, name: listed[JOBLIB]}))
    for size in anything(-1, 1.0, True, None, "5", 2**33, 2**63, 1e30, []):
        odd = {**listed, JOBLIB: {**listed[JOBLIB], "size": size}}
        yield case(f"size {size!r}", "manifest", with_changes(files=odd))
    for digest in (None, 5, "", "0" * 63, "0" * 65, listed[JOBLIB]["sha256"].upper(), "../" * 22, "z" * 64):
        odd = {**listed, JOBLIB: {**listed[JOBLIB], "sha256": digest}}
        yield case(f"sha256 {digest!r}", "manifest", with_changes(files=odd))
    for entry in anything(None, [], "x", 5):
        yield case(f"an entry is {entry!r}", "manifest", with_changes(files={**listed, JOBLIB: entry}))
    bombs = {f"part-{number}.bin": {"size": 2**30, "sha256": "0" * 64} for number in range(5)}
    yield case("five gigabytes in parts", "manifest", with_changes(files={**listed, **bombs}))
    for version in anything(1, 3, "2", None, 2.5, [], True):
        yield case(f"says version {version!r}", "manifest", with_changes(version=version))
    yield from _signatures(document, with_changes)
    yield from _frames(files, document)


def _signatures(document: Mapping[str, Any], with_changes: Callable[..., Callable[[Path], str]]) -> Iterator[Case]:
    signature = document["signature"]
    features = signature["features"]
    odd: list[Any] = [None, [], {}, "x", 5, {**signature, "task": "ranking"}, {**signature, "task": None}]
    odd += [
        {**signature, "features": value}
        for value in anything(None, [], {}, "x", [1], [{}], [{"name": 5}], [*features, features[0]])
    ]
    odd += [{**signature, "classes": value} for value in anything(None, [], ["one"], "setosa", [{}], ["a", "a", "b"])]
    odd += [{**signature, "features": [{**features[0], "kind": "picture"}, *features[1:]]}]
    odd += [{**signature, "features": [{**features[0], "minimum": value}, *features[1:]]} for value in anything("0", [], {})]
    one = {"name": "a", "classes": ["x", "y"]}
    bare = {**signature, "classes": []}
    odd += [{**bare, "outputs": value} for value in anything(None, {}, "a", [1], [one], [one, one], [one, {"name": 5}])]
    odd += [{**signature, "coverage": value} for value in anything([], {}, "0.9", {"level": 2, "bound": 0.1}, {"level": 0.9})]
    odd += [{**signature, "quantiles": value} for value in anything(None, {}, "0.5", [0.5], ["a"], [2.0])]
    odd += [{**signature, "distance": value} for value in anything(None, 1, "yes", True)]
    odd += [{**signature, "task": "outlier detection"}, {**bare, "task": "clustering"}]
    for number, value in enumerate(odd):
        yield case(f"signature {number}: {str(value)[:40]}", "signature", with_changes(signature=value))
    wider = {**signature, "features": [*features, {**features[0], "name": "fifth"}]}
    yield case("one feature too many", "signature load golden", with_changes(signature=wider))
    narrower = {**signature, "features": features[:3]}
    yield case("one feature too few", "signature load golden", with_changes(signature=narrower))
    for classes in (["setosa", "versicolor"], ["setosa", "versicolor", "virginica", "rose"]):
        yield case(f"{len(classes)} classes", "signature golden", with_changes(signature={**signature, "classes": classes}))
    wide = [{"name": str(at), "classes": ["x", "y"]} for at in range(101)]
    yield case("101 targets", "manifest", with_changes(signature={**bare, "outputs": wide}))
    deep = [{"name": name, "classes": list(range(501))} for name in "ab"]
    yield case("two targets of 501 classes", "manifest", with_changes(signature={**bare, "outputs": deep}))
    levels = [at / 1000 for at in range(1, 102)]
    yield case("101 quantiles", "manifest", with_changes(signature={**bare, "task": "regression", "quantiles": levels}))
    others = {
        "outliers": {**bare, "task": "outlier detection"},
        "clusters": {**bare, "task": "clustering", "classes": [0, 1]},
        "several targets": {**bare, "outputs": [one, {**one, "name": "b"}]},
        "quantiles": {**bare, "task": "regression", "quantiles": [0.1, 0.9]},
    }
    for name, other in others.items():
        yield case(f"says {name}", "signature golden load", with_changes(signature=other))
    yield case("a regression", "signature golden load", with_changes(signature={**signature, "task": "regression", "classes": []}))


def _frames(files: Mapping[str, bytes], document: Mapping[str, Any]) -> Iterator[Case]:
    """Descriptions of frames in the manifest of a bundle whose pickle would be called with them."""
    names = [feature["name"] for feature in document["signature"]["features"]]
    right = dict.fromkeys(names, "float64")
    pickled = {name: data for name, data in files.items() if name != ONNX}

    def with_frame(frame: Any) -> Callable[[Path], str]:
        listed = {name: document["files"][name] for name in pickled}
        return lambda root: put(root, pickled, orjson.dumps({**document, "files": listed, "frame": frame}))

    odd: list[Any] = ["x", 5, [], {}, {"dtypes": None}, {"dtypes": "float64"}, {"dtypes": dict.fromkeys(names, 1)}]
    odd += [{"dtypes": {**right, names[0]: dtype}} for dtype in ("", "O", "<f8", "S10", "V8", "datetime64[ns]", "x" * 5000)]
    odd += [{"dtypes": {**right, **{f"column {number}": "float64" for number in range(20_000)}}}]
    odd += [
        {"dtypes": right, "values": value} for value in anything([], "x", {"a": 1}, {names[0]: [1]}, {names[0]: ["x"] * 20_000})
    ]
    odd += [{"dtypes": right, "order": value} for value in anything([], {names[0]: ["a"]}, {names[0]: [0]}, {"a": [0]})]
    odd += [{"dtypes": right, "ordered": value} for value in anything("x", [5], [names[0]], ["\n" * 500])]
    for number, value in enumerate(odd):
        yield case(f"frame {number}: {str(value)[:40]}", "manifest", with_frame(value))


def goldens() -> Iterator[Case]:
    """Models that do not repeat what training recorded, or records that cannot be read."""
    files, _ = good()
    other = bundle_files(forest(), onnx=True)
    right = orjson.loads(files[GOLDEN])
    rows, scores = right["rows"], right["scores"]
    yield case("another model", "golden", proven({**files, ONNX: other[ONNX]}))
    yield case("another model's examples", "golden", proven({**files, GOLDEN: other[GOLDEN]}))
    odd: dict[str, bytes] = {
        "empty": b"",
        "no JSON": b"{",
        "no examples": orjson.dumps({"rows": [], "scores": []}),
        "no scores": orjson.dumps({"rows": rows}),
        "no rows": orjson.dumps({"scores": scores}),
        "fewer scores": orjson.dumps({"rows": rows, "scores": scores[:-1]}),
        "texts": orjson.dumps({"rows": rows, "scores": [["a", "b", "c"]] * len(rows)}),
        "nulls": orjson.dumps({"rows": rows, "scores": [[None] * 3] * len(rows)}),
        "a list": b"[]",
        "numbers for rows": orjson.dumps({"rows": [1] * len(rows), "scores": scores}),
        "rows out of range": orjson.dumps({"rows": [{**row, "sepal_length": 1e300} for row in rows], "scores": scores}),
        "turned classes": orjson.dumps({"rows": rows, "scores": [row[::-1] for row in scores]}),
        "deep": b'{"rows":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "a pickle": pickle.dumps(right),
    }
    for name, raw in odd.items():
        yield case(f"golden: {name}", "golden load", proven({**files, GOLDEN: raw}))
    for name, raw in {"empty": b"", "a list": b"[]", "a pickle": pickle.dumps({}), "deep": b"[" * 100_000}.items():
        yield case(f"metrics: {name}", "manifest", proven({**files, METRICS: raw}))
