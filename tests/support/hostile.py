"""Damaged and malicious bundles: each is put into a store, and says for which reasons it must be refused."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import itertools
import lzma
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from onnx import TensorProto, helper
from sklearn.pipeline import make_pipeline

from serve_app.artifacts.bundle import folder_name
from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES, describe, sha256
from serve_app.artifacts.names import GOLDEN, JOBLIB, MANIFEST, METRICS, ONNX, SEAL
from tests.support.models import bundle_files, bundle_manifest, forest, iris_signature, logistic

VERSION = 2
FILES = (JOBLIB, METRICS, GOLDEN, ONNX, MANIFEST)


@dataclass(frozen=True, slots=True)
class Case:
    """`build` puts the bundle into the store at a root and gives the pointer; `reasons` are those it may be refused for."""

    name: str
    reasons: frozenset[str]
    build: Callable[[Path], str]


def case(name: str, reasons: str, build: Callable[[Path], str]) -> Case:
    return Case(name, frozenset(reasons.split()), build)


def anything(*values: Any) -> tuple[Any, ...]:
    """These values, whose types differ on purpose."""
    return values


def put(root: Path, files: Mapping[str, bytes], manifest: bytes, *, version: int = VERSION, name: str | None = None) -> str:
    """A folder of these bytes, whatever they prove; its pointer."""
    folder = root / "bundles" / (name or folder_name(version, sha256(manifest)))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, data in {**files, MANIFEST: manifest}.items():
        (folder / file).write_bytes(data)
    return f"bundles/{folder.name}"


def good(**metadata: Any) -> tuple[dict[str, bytes], bytes]:
    """The files and the manifest of a bundle that would be served."""
    files = dict(bundle_files(logistic(0.5), onnx=True))
    return files, describe(files, bundle_manifest(**{"version": VERSION, **metadata}))


def proven(files: Mapping[str, bytes], **metadata: Any) -> Callable[[Path], str]:
    """A bundle whose digests are right: whoever can write the store can make one of anything."""
    document = orjson.loads(describe(files, bundle_manifest(version=VERSION)))
    return lambda root: put(root, files, orjson.dumps({**document, **metadata}))


# --- damage


def damaged(flips: int) -> Iterator[Case]:
    """Bytes that are not those that were published: the digest tells, and nothing is parsed."""
    files, manifest = good()
    whole = {**files, MANIFEST: manifest}
    name = folder_name(VERSION, sha256(manifest))

    def changed(file: str, data: bytes) -> Callable[[Path], str]:
        def build(root: Path) -> str:
            pointer = put(root, files, manifest, name=name)
            (root / pointer / file).write_bytes(data)
            return pointer

        return build

    for file, data in whole.items():
        for position in np.linspace(0, len(data) - 1, min(flips, len(data)), dtype=int).tolist():
            bit = 1 << position % 8
            flipped = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
            yield case(f"{file}: bit flipped at {position}", "digest", changed(file, flipped))
        for length in sorted({0, 1, len(data) // 4, len(data) // 2, len(data) - 1}):
            yield case(f"{file}: cut to {length} bytes", "digest", changed(file, data[:length]))
        for extra in (b"\0", b" ", b"\n", data):
            yield case(f"{file}: {len(extra)} bytes more", "digest", changed(file, data + extra))
    for one, other in itertools.permutations(whole, 2):
        yield case(f"{one} holds {other}", "digest", changed(one, whole[other]))
    other_files, other_manifest = dict(bundle_files(forest(), onnx=True)), describe(bundle_files(forest()), bundle_manifest())
    for file, data in {**other_files, MANIFEST: other_manifest}.items():
        if data != whole[file]:
            yield case(f"{file} of another version", "digest", changed(file, data))
    yield from _odd_files(files, manifest, name)


def _link_to(target: str, path: Path) -> None:
    path.symlink_to(target)


def _odd_files(files: Mapping[str, bytes], manifest: bytes, name: str) -> Iterator[Case]:
    """Files that are no plain files, or lead out of the store."""

    def replaced(file: str, replace: Callable[[Path], object]) -> Callable[[Path], str]:
        def build(root: Path) -> str:
            pointer = put(root, files, manifest, name=name)
            path = root / pointer / file
            path.unlink()
            replace(path)
            return pointer

        return build

    def elsewhere(path: Path) -> None:
        data = files.get(path.name, manifest)
        outside = path.parents[3] / "outside"
        outside.mkdir(exist_ok=True)
        (outside / path.name).write_bytes(data)  # the right bytes, in a place that nobody proved
        path.symlink_to(outside / path.name)

    def giant(path: Path) -> None:
        with path.open("wb") as sparse:
            sparse.truncate(10**10)

    for file in (*files, MANIFEST):
        yield case(f"{file} is missing", "unreadable", replaced(file, lambda path: None))
        yield case(f"{file} leads out of the store", "unreadable", replaced(file, elsewhere))
        for target in ("/etc/passwd", "/dev/zero", "../../../../etc/passwd", ".", file, "/proc/self/mem"):
            yield case(f"{file} leads to {target}", "unreadable", replaced(file, partial(_link_to, target)))
        yield case(f"{file} is a folder", "digest unreadable", replaced(file, lambda path: path.mkdir()))
        yield case(f"{file} is a pipe", "digest", replaced(file, lambda path: os.mkfifo(path)))
        yield case(f"{file} has ten gigabytes", "digest", replaced(file, giant))


def pointers() -> Iterator[Case]:
    """Pointers to what is no bundle of this store."""
    files, manifest = good()
    name = folder_name(VERSION, sha256(manifest))
    other = folder_name(VERSION, "0" * 64)
    for target in (
        *(f"../outside/{name}", f"/tmp/{name}", f"bundles/../bundles/{name}", f"./bundles/{name}", f"bundles//{name}", name),
        *("bundles", "bundles/", "bundles/..", "..", ".", "/", "/etc", "current", "bundles/current", "x" * 200, "bundles/ï-\udcff"),
        *(f"bundles/{name}/", f"bundles/{name}/..", f"bundles/{name}x", f"bundles/{name[:-1]}", f"bundles/{name.upper()}"),
        *(
            f"bundles/0{name}",
            f"bundles/-{name}",
            f"bundles/{VERSION}.0-{sha256(manifest)}",
            f"bundles/{VERSION}_{sha256(manifest)}",
        ),
        f"bundles/{'9' * 19}-{sha256(manifest)}",
    ):

        def build(root: Path, target: str = target) -> str:
            put(root, files, manifest)
            return target

        yield case(f"pointer to {target[:60]!r}", "pointer", build)
    yield case("pointer to a version that is gone", "unreadable", lambda root: f"bundles/{other}")

    def linked(root: Path) -> str:
        put(root.parent / "outside", files, manifest)
        link = root / "bundles" / name
        shutil.rmtree(link, ignore_errors=True)
        link.symlink_to(root.parent / "outside" / "bundles" / name)
        return f"bundles/{name}"

    yield case("the folder leads out of the store", "unreadable", linked)
    yield case("another version's name", "digest", lambda root: put(root, files, manifest, name=other))
    for version in (1, 3, 9, 10**17):
        yield case(
            f"version {VERSION} replayed as {version}",
            "manifest",
            partial(put, files=files, manifest=manifest, version=version),
        )


# --- bundles whose digests are right


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
    for number, value in enumerate(odd):
        yield case(f"signature {number}: {str(value)[:40]}", "signature", with_changes(signature=value))
    wider = {**signature, "features": [*features, {**features[0], "name": "fifth"}]}
    yield case("one feature too many", "signature load golden", with_changes(signature=wider))
    narrower = {**signature, "features": features[:3]}
    yield case("one feature too few", "signature load golden", with_changes(signature=narrower))
    for classes in (["setosa", "versicolor"], ["setosa", "versicolor", "virginica", "rose"]):
        yield case(f"{len(classes)} classes", "signature golden", with_changes(signature={**signature, "classes": classes}))
    yield case("a regression", "signature golden load", with_changes(signature={**signature, "task": "regression", "classes": []}))


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


# --- pickles


class Trap:
    """Whoever unpickles it runs a function with arguments."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def traps(canary: Path) -> dict[str, bytes]:
    """Pickles whose loading would create the canary file, in all the forms that joblib reads."""
    path = str(canary)
    code = f"open({path!r}, 'w').close()"
    objects: dict[str, object] = {
        "system": Trap(os.system, f"touch {path}"),
        "exec": Trap(exec, code),
        "eval": Trap(eval, code),
        "open": Trap(open, path, "w"),
        "touch": Trap(Path.touch, canary),
        "mkdir": Trap(os.mkdir, path),
        "symlink": Trap(os.symlink, "/", path),
        "in a list": [1, 2, Trap(open, path, "w")],
        "in an array": np.array([Trap(open, path, "w")], dtype=object),
        "in a pipeline": _pipeline(Trap(open, path, "w")),
    }
    found = {}
    for name, trap in objects.items():
        buffer = io.BytesIO()
        joblib.dump(trap, buffer)
        raw = buffer.getvalue()
        found[name] = raw
        found |= {f"{name}, zlib": zlib.compress(raw), f"{name}, gzip": gzip.compress(raw), f"{name}, bz2": bz2.compress(raw)}
        found |= {f"{name}, xz": lzma.compress(raw), f"{name}, lzma": lzma.compress(raw, lzma.FORMAT_ALONE)}
        if "array" not in name:
            found |= {f"{name}, protocol {number}": pickle.dumps(trap, number) for number in (0, 2, 4)}
    return found


def _pipeline(step: object) -> object:
    made = make_pipeline("passthrough")
    made.steps = [("trap", step)]
    return made


def unproven_pickles(canary: Path) -> Iterator[Case]:
    """Pickles put in the place of a published model: the digest tells before anything is unpickled."""
    files = dict(bundle_files(logistic(0.5)))
    manifest = describe(files, bundle_manifest(version=VERSION))
    for name, raw in traps(canary).items():

        def build(root: Path, raw: bytes = raw) -> str:
            pointer = put(root, files, manifest)
            (root / pointer / JOBLIB).write_bytes(raw)
            return pointer

        yield case(f"pickle in a published bundle: {name}", "digest", build)


def proven_pickles(canary: Path) -> Iterator[Case]:
    """Pickles in bundles whose digests are right: for replicas that unpickle nothing."""
    files, _ = good()
    del files[ONNX]
    for name, raw in traps(canary).items():
        yield case(f"pickle with right digests: {name}", "forbidden", proven({**files, JOBLIB: raw}))


def pickles_of_other_libraries(canary: Path) -> Iterator[Case]:
    """The versions are compared before anything is unpickled."""
    files, _ = good()
    del files[ONNX]
    trap = next(iter(traps(canary).values()))
    for libraries in (
        *({"scikit-learn": version} for version in ("0.24.2", "1.0", "1.8.9", "2.0.0", "1.10.0", "", "latest", 1.9e9)),
        *({"numpy": version} for version in ("1.26.4", "3.0.0", "x")),
    ):
        yield case(f"made with {libraries}", "libraries manifest", proven({**files, JOBLIB: trap}, libraries=libraries))


# --- ONNX


def graphs(folder: Path) -> Iterator[Case]:
    """ONNX models that reach out of themselves, never end, or are none."""
    files, _ = good()
    weights = folder / "weights.bin"
    np.arange(12, dtype=np.float64).tofile(weights)
    raw = files[ONNX]
    relative = os.path.relpath(weights)
    for location in (str(weights), relative, "weights.bin", "../weights.bin", "/etc/passwd", "/proc/self/environ"):
        for where, model in {"initializer": _with_weights(location), "constant": _with_constant(location)}.items():
            yield case(f"ONNX: {where} in {location}", "forbidden", proven({**files, ONNX: model}))
        yield case(f"ONNX: behind many numbers in {location}", "forbidden", proven({**files, ONNX: _with_buried(location)}))
        yield case(f"ONNX: branch in {location}", "forbidden", proven({**files, ONNX: _with_branch(location)}))
    for domain in ("evil", "com.microsoft", "ai.onnx.contrib", "ai.onnx.training", "ai.onnx.ml ", "AI.ONNX"):
        yield case(f"ONNX: operator of {domain!r}", "forbidden", proven({**files, ONNX: _with_operator(domain)}))
    yield case("ONNX: a function of its own", "forbidden", proven({**files, ONNX: _with_function()}))
    yield case("ONNX: a loop without end", "forbidden", proven({**files, ONNX: _with_loop()}))
    for length in np.linspace(0, len(raw) - 1, 40, dtype=int).tolist():
        yield case(f"ONNX: cut to {length}", "load", proven({**files, ONNX: raw[:length]}))
    for name, other in {
        "text": b"an ONNX model",
        "zeros": bytes(5000),
        "0xff": b"\xff" * 5000,
        "a pickle": pickle.dumps(raw),
        "gzip": gzip.compress(raw),
        "groups": b"\x3b" * 500,
        "endless number": b"\x38" + b"\xff" * 20,
        "two graphs": raw + raw,
        "no graph": _without_graph(),
        "deep": _deep(200),
    }.items():
        yield case(f"ONNX: {name}", "load", proven({**files, ONNX: other}))
    for seed in range(40):
        noise = np.random.default_rng(seed).bytes(len(raw))
        yield case(f"ONNX: noise {seed}", "load forbidden", proven({**files, ONNX: noise}))
    for onnx_facts in anything(None, {}, [], "x"):
        yield case(f"ONNX: facts {onnx_facts!r}", "load manifest", proven(files, onnx=onnx_facts))


def _external(location: str) -> TensorProto:
    tensor = TensorProto(name="W", data_type=TensorProto.DOUBLE, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "96")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model(nodes: list[Any], *, tensors: list[Any] | None = None, domain: str = "", functions: tuple[Any, ...] = ()) -> bytes:
    width = len(iris_signature().features)
    source = helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, width])
    target = helper.make_tensor_value_info("Y", TensorProto.DOUBLE, [None, 3])
    graph = helper.make_graph(nodes, "graph", [source], [target], initializer=tensors or [])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8
    return bytes(model.SerializeToString())


def _with_weights(location: str) -> bytes:
    return _model([helper.make_node("MatMul", ["X", "W"], ["Y"])], tensors=[_external(location)])


def _with_constant(location: str) -> bytes:
    constant = helper.make_node("Constant", [], ["W"], value=_external(location))
    return _model([constant, helper.make_node("MatMul", ["X", "W"], ["Y"])])


def _with_buried(location: str) -> bytes:
    """The tensor is the last of an attribute with as many numbers and texts as one of a forest."""
    constant = helper.make_node("Constant", [], ["W"], value=_external("weights.bin"))
    buried = constant.attribute[0]
    buried.ClearField("t")
    buried.ints.extend([*range(-3, 5000), 2**62, -(2**62)])
    buried.floats.extend(np.linspace(-1, 1, 5000).tolist())
    buried.strings.extend(b"x" * (length % 40) for length in range(5000))
    buried.tensors.append(_external(location))
    return _model([constant, helper.make_node("MatMul", ["X", "W"], ["Y"])])


def _with_branch(location: str) -> bytes:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("Z", TensorProto.DOUBLE, None)],
        initializer=[_external(location)],
    )
    truth = helper.make_node("Constant", [], ["truth"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    return _model([truth, helper.make_node("If", ["truth"], ["Y"], then_branch=inner, else_branch=inner)])


def _with_operator(domain: str) -> bytes:
    return _model([helper.make_node("Evil", ["X"], ["Y"], domain=domain)], domain=domain)


def _with_function() -> bytes:
    body = [helper.make_node("Identity", ["a"], ["b"])]
    function = helper.make_function("own", "Copy", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    return _model([helper.make_node("Copy", ["X"], ["Y"], domain="own")], domain="own", functions=(function,))


def _with_loop() -> bytes:
    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "inner",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.DOUBLE, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.DOUBLE, None),
        ],
    )
    count = helper.make_node("Constant", [], ["n"], value=helper.make_tensor("n", TensorProto.INT64, [], [2**62]))
    truth = helper.make_node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    return _model([count, truth, helper.make_node("Loop", ["n", "t", "X"], ["Y"], body=inner)])


def _without_graph() -> bytes:
    return bytes(onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString())


def _deep(depth: int) -> bytes:
    """A graph in an attribute of a node in a graph, and so on."""
    raw = b""
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            raw = bytes([tag]) + _length(raw) + raw
    return b"\x3a" + _length(raw) + raw


def _length(raw: bytes) -> bytes:
    number, out = len(raw), b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


# --- seals


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public one, as PEM files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def badly_sealed(canary: Path, sign: Callable[[str], bytes], stranger: Callable[[str], bytes]) -> Iterator[Case]:
    """Bundles with right digests and a pickle, for replicas that serve signed ones only."""
    files, _ = good()
    del files[ONNX]
    files[JOBLIB] = traps(canary)["open"]
    manifest = describe(files, bundle_manifest(version=VERSION))
    digest = sha256(manifest)
    right = sign(digest)

    def sealed(seal: bytes | None) -> Callable[[Path], str]:
        return lambda root: put(root, files if seal is None else {**files, SEAL: seal}, manifest)

    plain = base64.b64decode(right)
    seals: dict[str, bytes | None] = {
        "none": None,
        "empty": b"",
        "a stranger's": stranger(digest),
        "of another bundle": sign(sha256(b"another")),
        "the digest": digest.encode(),
        "zeros": base64.b64encode(bytes(64)),
        "not base64": b"\xff" * 64,
        "twice": right + right,
        "raw": plain,
        "cut": right[:40],
        "the public digest in hex": plain.hex().encode(),
    }
    seals |= {f"flipped at {at}": base64.b64encode(plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :]) for at in range(64)}
    for name, seal in seals.items():
        yield case(f"seal: {name}", "unsigned", sealed(seal))
    yield case("seal: too large", "digest", sealed(right * 100))

    def linked(root: Path) -> str:
        pointer = put(root, files, manifest)
        (root / pointer / SEAL).symlink_to("/etc/passwd")
        return pointer

    yield case("seal: leads away", "unreadable", linked)
