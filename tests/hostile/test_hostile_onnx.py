"""ONNX models that hide something from the check, never end, or swell: refused, and the replica does not notice."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import orjson
import pytest
from onnx import helper

from serve_app.artifacts.names import GOLDEN, ONNX
from serve_app.artifacts.store import Entry, Store
from serve_app.errors import BundleRefused
from serve_app.inference.onnx_guard import check_onnx
from serve_app.inference.policy import LoadPolicy, TrialLimits
from serve_app.inference.slot import Slot
from tests.support.figures import note
from tests.support.hostile import onnx_models
from tests.support.hostile.onnx_models import field, overlong, varint
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, forest, logistic, logistic_store, publish_iris
from tests.support.native import answer_row
from tests.support.policies import load_policy
from tests.support.processes import resident
from tests.support.waiting import until

MUTATIONS = int(os.environ.get("IRIS_TEST_MUTATIONS", "10000"))
MEGABYTE = 1_000_000
Fields = list[tuple[int, bytes, bytes]]
"""Number, tag and what follows of each field of a message."""
Mutate = Callable[[random.Random, bytes, bytes], bytes]
BODY = orjson.dumps(A_FLOWER)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return logistic_store(tmp_path / "models")


def with_trial(seconds: float) -> LoadPolicy:
    return load_policy(trial=TrialLimits(seconds, memory_share=0.5))


def publish(store: Store, raw: bytes) -> Entry:
    """A bundle whose ONNX form is `raw`, without examples that it could fail."""
    files = {name: data for name, data in bundle_files(logistic(0.5), onnx=True).items() if name != GOLDEN}
    return store.publish({**files, ONNX: raw}, bundle_manifest())


def hidden_models(folder: Path) -> dict[str, bytes]:
    (folder / "secret.bin").write_bytes(np.arange(12.0).tobytes())
    models = {
        "a file": onnx_models.reads_a_file("secret.bin"),
        "a foreign domain": onnx_models.foreign(),
        "a loop": onnx_models.loop(),
    }
    return {name: onnx_models.hidden(proto) for name, proto in models.items()} | {
        "ONNX Runtime's format": onnx_models.in_ort_format(onnx_models.foreign().SerializeToString(), folder),
        "a polyglot": onnx_models.polyglot(
            onnx_models.in_ort_format(onnx_models.foreign().SerializeToString(), folder), onnx_models.plain()
        ),
    }


def test_what_a_model_hides_from_a_lenient_reader_is_what_onnx_runtime_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models would be dangerous: one gives the bytes of a file in the working folder."""
    hidden = hidden_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    scores = {}
    for name in ("a file", "a foreign domain", "a polyglot"):
        session = onnxruntime.InferenceSession(hidden[name], options, providers=["CPUExecutionProvider"])
        scores[name] = session.run(None, {"X": np.eye(4)})[0]
    assert scores["a file"].ravel().tolist() == list(range(12))
    assert not np.allclose(scores["a foreign domain"], 1.0)
    assert not np.allclose(scores["a polyglot"], 1.0)


def test_a_model_that_hides_something_is_refused_before_it_is_parsed(store: Store, tmp_path: Path) -> None:
    slot = Slot(store, policy=load_policy())
    assert slot.refresh()
    for name, raw in hidden_models(tmp_path).items():
        publish(store, raw)
        assert not slot.refresh(), name
        assert slot.refusal is not None
        assert slot.refusal.reason in ("load", "forbidden"), name
        assert slot.predictor is not None
        assert slot.predictor.version == "1"


def test_an_operator_that_no_conversion_needs_is_refused_by_name() -> None:
    for operator in ("Loop", "If", "Scan", "Range", "RandomNormal", "Einsum", "EyeLike"):
        with pytest.raises(BundleRefused, match=operator) as refusal:
            check_onnx(onnx_models.model([helper.make_node(operator, ["X"], ["Y"])]).SerializeToString())
        assert refusal.value.reason == "forbidden"


def test_a_model_that_swells_is_refused_and_the_replica_does_not_grow(store: Store) -> None:
    slot = Slot(store, policy=with_trial(60))
    assert slot.refresh()
    assert slot.predictor is not None
    answer = answer_row(slot.predictor, BODY)
    before = resident(os.getpid())
    figures = []
    for name, proto in {"a sum": onnx_models.broadcasting(), "a constant": onnx_models.swelling()}.items():
        raw = proto.SerializeToString()
        publish(store, raw)
        peak = [before]
        watching = threading.Event()

        def watch(peak: list[int] = peak, watching: threading.Event = watching) -> None:
            while not watching.wait(0.02):
                peak.append(resident(os.getpid()))

        thread = threading.Thread(target=watch)
        thread.start()
        started = time.monotonic()
        assert not slot.refresh(), name
        seconds = time.monotonic() - started
        watching.set()
        thread.join()
        assert slot.refusal is not None
        assert slot.refusal.reason in ("load", "forbidden")
        assert answer_row(slot.predictor, BODY) == answer
        assert max(peak) - before < 100 * MEGABYTE
        figures.append(
            f"{name} ({len(raw)} bytes): {slot.refusal.reason} after {seconds:.1f} s, +{(max(peak) - before) / MEGABYTE:.0f} MB"
        )
    note("models that swell: " + "; ".join(figures))


def test_a_roll_back_is_followed_while_a_model_that_never_ends_is_tried(store: Store) -> None:
    publish_iris(store, forest(), onnx=True)
    slot = Slot(store, policy=with_trial(120))
    assert slot.refresh()
    assert slot.predictor is not None
    publish(store, onnx_models.expanding().SerializeToString())
    refresh = threading.Thread(target=slot.refresh)
    refresh.start()
    until(lambda: bool(_children()), seconds=60, what="a trial")
    time.sleep(1.0)  # into the load of the model
    assert slot.predictor.version == "2"
    store.promote(1)
    started = time.monotonic()
    until(lambda: slot.predictor is not None and slot.predictor.version == "1", seconds=60, what="version 1")
    seconds = time.monotonic() - started
    refresh.join()
    assert slot.refusal is None
    until(lambda: not _children(), seconds=5, what="the end of the trial")
    store.promote(2)
    assert slot.refresh()
    note(f"a roll-back during a load without end was followed after {seconds:.1f} s")
    assert seconds < 30


def _children() -> list[int]:
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()] or [
        int(child) for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_a_model_that_never_ends_is_refused_in_time_also_for_a_replica_that_starts(store: Store) -> None:
    publish(store, onnx_models.expanding().SerializeToString())
    slot = Slot(store, policy=with_trial(5))
    started = time.monotonic()
    assert not slot.refresh()
    seconds = time.monotonic() - started
    assert slot.predictor is None
    assert slot.refusal is not None
    assert slot.refusal.reason == "load"
    assert seconds < 20
    store.promote(1)
    assert Slot(store, policy=with_trial(60)).refresh()
    note(f"a replica that starts with a model that never ends was free after {seconds:.1f} s of 5")


# --- differential fuzz


def test_both_readers_see_the_same_in_ten_thousand_mutations() -> None:
    chance = random.Random(20)
    originals = list(_originals())
    outcomes: Counter[str] = Counter()
    wrong = []
    for at in range(MUTATIONS):
        name, mutate = chance.choice(_MUTATIONS)
        mutant = mutate(chance, *chance.sample(originals, 2))
        try:
            check_onnx(mutant)
        except BundleRefused as refusal:
            outcomes[refusal.reason] += 1
            continue
        outcomes["accepted"] += 1
        problem = _disagreement(mutant)
        if problem:
            wrong.append(f"{at} {name}: {problem}")
    note(
        f"{sum(outcomes.values())} mutations of ONNX models: {dict(sorted(outcomes.items()))}, {len(wrong)} read otherwise by onnx"
    )
    assert not wrong, "\n".join(wrong[:20])
    assert outcomes["accepted"] > MUTATIONS / 100
    assert outcomes["load"] > MUTATIONS / 10


def _disagreement(raw: bytes) -> str | None:
    """What `onnx` reads that the check says cannot be there."""
    try:
        model = onnx.load_from_string(raw)
    except Exception as error:  # DecodeError, and what the package makes of others
        return f"cannot be read: {error}"
    seen, strange = _seen(model), []
    if seen["operators"] - _allowed():
        strange.append(str(seen["operators"] - _allowed()))
    strange += [key for key in ("external", "functions", "graphs", "sparse") if seen[key]]
    strange += [str(domain) for domain in seen["domains"] if domain not in ("", "ai.onnx", "ai.onnx.ml")]
    if _seen(onnx.load_from_string(model.SerializeToString())) != seen:
        strange.append("another reading after writing")
    if model.ByteSize() != len(raw):
        strange.append("bytes that are written otherwise")
    return ", ".join(strange) or None


def _allowed() -> set[tuple[str, str]]:
    from serve_app.inference.onnx_guard import OPERATORS

    return {(domain, name) for domain, names in OPERATORS.items() for name in names}


def _seen(model: onnx.ModelProto) -> dict[str, set[object]]:
    """Everything that `onnx` finds in a model that the check is about."""
    graph = model.graph
    tensors = [*graph.initializer]
    seen: dict[str, set[object]] = {"graphs": set(), "sparse": {str(sparse) for sparse in graph.sparse_initializer}}
    for node in graph.node:
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            if attribute.HasField("g") or attribute.graphs:
                seen["graphs"].add(attribute.name)
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                seen["sparse"].add(attribute.name)
    seen["operators"] = {(node.domain, node.op_type) for node in graph.node}
    seen["domains"] = {opset.domain for opset in model.opset_import}
    seen["external"] = {tensor.name for tensor in tensors if tensor.external_data or tensor.data_location}
    seen["functions"] = {function.name for function in model.functions} | {str(info) for info in model.training_info}
    seen["initializers"] = {(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    return seen


def _originals() -> Iterator[bytes]:
    yield bundle_files(logistic(), onnx=True)[ONNX]
    yield bundle_files(forest(), onnx=True)[ONNX]
    yield onnx_models.plain().SerializeToString()
    yield onnx_models.broadcasting(8).SerializeToString()


def _flip(chance: random.Random, raw: bytes, other: bytes) -> bytes:
    mutant = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        mutant[chance.randrange(len(mutant))] ^= 1 << chance.randrange(8)
    return bytes(mutant)


def _splice(chance: random.Random, raw: bytes, other: bytes) -> bytes:
    start = chance.randrange(len(other))
    piece = other[start : start + chance.randrange(1, 200)]
    at = chance.randrange(len(raw))
    return raw[:at] + piece + raw[at + chance.choice((0, len(piece))) :]


def _cut(chance: random.Random, raw: bytes, _: bytes) -> bytes:
    at = chance.randrange(len(raw))
    return raw[:at] + raw[at + chance.randrange(1, 40) :]


def _mutated_fields(
    chance: random.Random, raw: bytes, mutate: Callable[[list[tuple[int, bytes, bytes]]], None], depth: int
) -> bytes:
    """The message with its fields (number, tag, what follows) changed by `mutate`, some messages deep."""
    fields = list(_split(raw))
    inner = [at for at, (number, tag, _) in enumerate(fields) if tag[0] & 7 == 2 and number in (1, 5, 7, 8, 11, 12)]
    if depth and inner:
        at = chance.choice(inner)
        number, tag, rest = fields[at]
        payload = rest[len(varint(_length(rest))) :]
        with_changes = payload
        try:
            with_changes = _mutated_fields(chance, payload, mutate, depth - 1)
        except (IndexError, ValueError):
            mutate(fields)
        else:
            fields[at] = (number, tag, varint(len(with_changes)) + with_changes)
    else:
        mutate(fields)
    return b"".join(tag + rest for _, tag, rest in fields)


def _split(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    at = 0
    while at < len(raw):
        tag = _length(raw[at:])
        start = at + len(varint(tag))
        wire, end = tag & 7, start
        if wire == 0:
            while raw[end] > 127:
                end += 1
            end += 1
        elif wire == 2:
            size = _length(raw[start:])
            end = start + len(varint(size)) + size
        elif wire in (1, 5):
            end = start + (8 if wire == 1 else 4)
        else:
            raise ValueError("no field")
        if end > len(raw):
            raise ValueError("cut off")
        yield tag >> 3, raw[at:start], raw[start:end]
        at = end


def _length(raw: bytes) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number without end")


def _structural(
    change: Callable[[random.Random, list[tuple[int, bytes, bytes]]], None],
) -> Callable[[random.Random, bytes, bytes], bytes]:
    return lambda chance, raw, _: _mutated_fields(chance, raw, lambda fields: change(chance, fields), chance.randrange(5))


def _insert_unknown(chance: random.Random, fields: Fields) -> None:
    number = chance.choice((0, 9, 17, 19, 100, 536870911, 536870912, 1 << 29 | 7))
    wire = chance.randrange(8)
    rest = {0: varint(chance.getrandbits(40)), 1: bytes(8), 2: varint(3) + b"abc", 5: bytes(4)}.get(wire, b"")
    fields.insert(chance.randint(0, len(fields)), (number, varint(number << 3 | wire), rest))


def _lengthen(chance: random.Random, fields: Fields) -> None:
    at = chance.randrange(len(fields))
    number, tag, rest = fields[at]
    if chance.random() < 0.6:
        value = _length(tag) | (1 << 32 if chance.random() < 0.5 else 0)
        tag = overlong(value, chance.randint(max(5, len(tag)), 9) if value >> 28 else chance.randint(len(tag) + 1, 9))
    elif tag[0] & 7 in (0, 2):
        value = _length(rest)
        rest = overlong(value, min(10, len(varint(value)) + chance.randint(1, 4))) + rest[len(varint(value)) :]
    fields[at] = (number, tag, rest)


def _duplicate(chance: random.Random, fields: Fields) -> None:
    fields.insert(chance.randint(0, len(fields)), chance.choice(fields))


def _drop(chance: random.Random, fields: Fields) -> None:
    del fields[chance.randrange(len(fields))]


def _shuffle(chance: random.Random, fields: Fields) -> None:
    chance.shuffle(fields)


def _repack(chance: random.Random, fields: Fields) -> None:
    """A number as a list of one, and a list as single numbers."""
    at = chance.randrange(len(fields))
    number, tag, rest = fields[at]
    if tag[0] & 7 == 2:
        fields[at] = (number, varint(number << 3), rest[:1] if rest[:1] < b"\x80" else b"\x01")
    else:
        fields[at] = (number, varint(number << 3 | 2), varint(len(rest)) + rest)


def _renumber(chance: random.Random, fields: Fields) -> None:
    at = chance.randrange(len(fields))
    _, tag, rest = fields[at]
    number = chance.randint(1, 26)
    fields[at] = (number, varint(number << 3 | tag[0] & 7), rest)


def _insert_dangerous(chance: random.Random, fields: Fields) -> None:
    """Fields that are dangerous somewhere: domains, operators, external data, graphs in attributes."""
    payload = chance.choice((b"com.microsoft", b"Loop", b"evil", onnx_models.external("x").SerializeToString()))
    number = chance.choice((1, 4, 5, 6, 7, 13, 15, 20, 22, 25))
    raw = field(number, payload)
    if chance.random() < 0.2:
        number, raw = 14, varint(14 << 3) + chance.choice((b"\x01", overlong(1 << 32 | 1, 5), overlong(0, 2)))
    tag = varint(_length(raw))
    fields.insert(chance.randint(0, len(fields)), (number, tag, raw[len(tag) :]))


_MUTATIONS: list[tuple[str, Mutate]] = [
    ("flip", _flip),
    ("splice", _splice),
    ("cut", _cut),
    *(
        (change.__name__, _structural(change))
        for change in (_insert_unknown, _lengthen, _duplicate, _drop, _shuffle, _repack, _renumber, _insert_dangerous)
    ),
]
