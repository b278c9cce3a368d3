"""A store and a registry that an attacker can write: nothing hangs, fills the memory, leaves the store or forges a log line."""

from __future__ import annotations

import io
import logging
import os
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression

from serve_app.artifacts.bundle import read_bundle, verify_files
from serve_app.artifacts.manifest import describe, sha256
from serve_app.artifacts.manifest_bounds import MAX_BINS, MAX_CATEGORIES, MAX_CLASSES, MAX_FEATURES, MAX_NAME, MAX_TEXT
from serve_app.artifacts.mlflow_download import Download
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS, REPORT, SEAL
from serve_app.artifacts.signing import verifier
from serve_app.artifacts.skops_format import skops_to_joblib
from serve_app.artifacts.store import BUNDLES, CURRENT, LOCK, Store
from serve_app.artifacts.volume import read_volume
from serve_app.errors import BundleRefused, StoreError
from serve_app.inference.slot import Slot
from serve_app.telemetry.logs import TextFormatter
from tests.support.figures import note
from tests.support.hostile.cases import VERSION, good, put
from tests.support.hostile.signatures import key_pair
from tests.support.models import bundle_files, bundle_manifest, iris, logistic, logistic_store, publish_iris, write_legacy
from tests.support.policies import ALLOW_ALL, load_policy

JUNK_FILE = 100_000_000
GIANT = 100_000_000_000
MEGABYTE = 1_000_000


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Memory:
    """Bytes by which the memory of this process rose in a block: at its peak, and at its end."""

    peak = kept = 0

    def __enter__(self) -> Memory:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self._before = status_bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = status_bytes("VmHWM") - self._before
        self.kept = status_bytes("VmRSS") - self._before


def within(seconds: float, do: Callable[[], Any]) -> Any:
    """The result of `do`, which must not hang."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(do()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, "it hangs, or it failed"
    return results[0]


def sparse(path: Path, size: int = GIANT) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def bind(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is at most 108 bytes long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(before)


KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": bind,
    "sparse": sparse,
    "folder": os.mkdir,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link out of the store": lambda path: path.symlink_to("/etc/passwd"),
}


def point(store: Store, pointer: str | bytes) -> None:
    (store.root / CURRENT).unlink(missing_ok=True)
    os.symlink(pointer, os.fsencode(store.root / CURRENT) if isinstance(pointer, bytes) else store.root / CURRENT)


def reason_of(slot: Slot) -> str:
    assert not within(20, slot.refresh)
    assert slot.refusal is not None
    return slot.refusal.reason


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return logistic_store(tmp_path / "models")


def test_no_kind_of_file_in_the_store_hangs_a_reader_or_fills_its_memory(tmp_path: Path, store: Store) -> None:
    slot = Slot(store, policy=ALLOW_ALL)
    assert slot.refresh()
    files, manifest = good()
    tried, longest, peak = 0, 0.0, 0
    for kind, make in KINDS.items():
        pointer = put(store.root, files, manifest)
        point(store, pointer)
        legacy = Store(tmp_path / f"legacy {kind}")
        write_legacy(legacy.root, logistic())
        cases: list[tuple[Path, Callable[[], object]]] = [
            (store.root / REPORT, partial(read_volume, store.root)),
            *((store.root / pointer / name, Slot(store, policy=ALLOW_ALL).refresh) for name in (*files, MANIFEST, SEAL)),
            *((legacy.root / name, Slot(legacy, policy=ALLOW_ALL).refresh) for name in LEGACY_FILES),
        ]
        for path, read in cases:
            before = path.read_bytes() if path.exists() else None
            path.unlink(missing_ok=True)
            make(path)
            started = time.monotonic()
            with Memory() as memory:
                within(20, read)
            longest, peak, tried = max(longest, time.monotonic() - started), max(peak, memory.peak), tried + 1
            path.rmdir() if path.is_dir() else path.unlink()
            if before is not None:
                path.write_bytes(before)
    note(f"{tried} files that are no regular files, longest read {longest:.2f} s, peak of the memory +{peak / MEGABYTE:.0f} MB")
    assert peak < 30 * MEGABYTE
    assert slot.predictor is not None


def write_junk(root: Path, **metadata: Any) -> str:
    """A bundle with six files of 100 MB that no release uses, and digests that are right; written by another process."""
    child = os.fork()
    if child == 0:
        files, _ = good()
        junk = {f"junk-{number}.bin": os.urandom(1000) * (JUNK_FILE // 1000) for number in range(6)}
        put(root, {**files, **junk}, describe({**files, **junk}, bundle_manifest(version=VERSION, **metadata)))
        os._exit(0)
    os.waitpid(child, 0)
    return f"{BUNDLES}/{next((root / BUNDLES).glob(f'{VERSION}-*')).name}"


def test_junk_in_a_bundle_is_hashed_and_not_kept(store: Store) -> None:
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    point(store, write_junk(store.root))
    with Memory() as memory:
        assert slot.refresh()
    note(f"600 MB of unused files: peak +{memory.peak / MEGABYTE:.0f} MB, kept +{memory.kept / MEGABYTE:.0f} MB")
    assert memory.peak < 15 * MEGABYTE


def test_an_unsigned_bundle_is_refused_before_anything_large_is_read(store: Store, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "trainer")
    slot = Slot(store, policy=load_policy(verify=verifier(public)))
    point(store, write_junk(store.root))
    started = time.monotonic()
    with Memory() as memory:
        assert reason_of(slot) == "unsigned"
    assert memory.peak < 10 * MEGABYTE
    assert time.monotonic() - started < 1


def test_a_model_larger_than_a_share_of_the_memory_is_refused_before_it_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.artifacts.memory_limit.memory_limit", lambda: 1 << 30)
    files, _ = good()
    document = orjson.loads(describe(files, bundle_manifest(version=VERSION)))
    document["files"]["model.onnx"]["size"] = 300 << 20
    pointer = put(store.root, files, orjson.dumps(document))
    sparse(store.root / pointer / "model.onnx", 300 << 20)
    point(store, pointer)
    with Memory() as memory:
        assert reason_of(Slot(store, policy=ALLOW_ALL)) == "manifest"
    legacy = Store(store.root.parent / "legacy")
    write_legacy(legacy.root)
    sparse(legacy.root / JOBLIB, 300 << 20)
    with Memory() as more:
        assert reason_of(Slot(legacy, policy=ALLOW_ALL)) == "manifest"
    assert max(memory.peak, more.peak) < 10 * MEGABYTE


def test_links_in_the_store_lead_no_writer_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / ".ssh").mkdir(parents=True)
    (outside / "file").write_text("precious")
    for number, (name, target) in enumerate([(LOCK, outside / "file"), (BUNDLES, outside), (LOCK, tmp_path / "new")]):
        store = Store(tmp_path / f"models {number}")
        store.root.mkdir()
        (store.root / name).symlink_to(target)
        with pytest.raises(StoreError):
            publish_iris(store)
    assert (outside / "file").read_text() == "precious"
    assert (outside / ".ssh").is_dir()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [os.mkfifo, bind, os.mkdir], ids=["pipe", "socket", "folder"])
def test_a_lock_that_is_no_file_fails_at_once(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / LOCK)

    def publish() -> bool:
        with pytest.raises(StoreError):
            publish_iris(Store(tmp_path))
        return True

    assert within(10, publish)


def test_a_link_among_the_rubbish_is_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("precious")
    (store.root / BUNDLES / ".rubbish").symlink_to(tmp_path / "home")
    (store.root / ".link-folder").mkdir()
    publish_iris(store)
    assert (tmp_path / "home" / "file").read_text() == "precious"


def test_the_store_itself_may_be_a_link_and_legacy_files_may_link_inside_it(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "models").symlink_to("volume")
    assert publish_iris(Store(tmp_path / "models")).version == 1
    mounted = tmp_path / "mounted"  # as the kubelet mounts a ConfigMap
    write_legacy(mounted / "..2026")
    (mounted / "..data").symlink_to("..2026")
    for name in LEGACY_FILES:
        (mounted / name).symlink_to(f"..data/{name}")
    assert Slot(Store(mounted), policy=ALLOW_ALL).refresh()


FORGED = "bundles/x\n12:00:00 INFO model swapped model_version=7 \x1b[2J\u202e"


def test_no_pointer_forges_a_line_of_the_log_or_fails_an_answer(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()

    for pointer in (FORGED, b"bundles/\xff\xfe\n", "bundles/" + "x" * 3000):
        caplog.clear()
        point(store, pointer)
        slot.refresh()
        assert slot.refusal is not None
        slot.refusal.candidate.encode()  # it goes into answers as UTF-8
        (record,) = caplog.records
        line = TextFormatter().format(record)
        assert line.isprintable()
        assert len(line) < 1000


def test_a_traceback_forges_no_line() -> None:
    error = ValueError("x\n12:00:00 INFO model swapped \x1b[2J")
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (ValueError, error, None))
    first, *rest = TextFormatter().format(record).split("\n")
    assert first.endswith("ERROR failed")
    assert rest
    assert all(line.startswith("| ") and line.isprintable() for line in rest)


@pytest.mark.parametrize("version", ["1\r\nSet-Cookie: x=1", "", " ", "ä", "1" * 65, "-1", "a b", "1\n"])
def test_a_version_that_could_not_stand_in_a_header_is_refused(version: str) -> None:
    files = bundle_files(logistic(), onnx=True)
    raw = describe(files, bundle_manifest())
    with pytest.raises(BundleRefused) as refused:
        verify_files(version, sha256(raw), raw, files, source="mlflow")
    assert refused.value.reason == "manifest"


def number_reference(edges: int) -> dict[str, Any]:
    column = {"kind": "number", "edges": list(range(edges)), "counts": [1] * (edges + 1), "missing": 0}
    return {"rows": 9, "features": {"sepal_length": column}}


def signature_with(**changes: Any) -> dict[str, Any]:
    signature = bundle_manifest().signature
    assert signature is not None
    return {**signature.to_dict(), **changes}


def too_much() -> Iterator[tuple[str, dict[str, Any]]]:
    def feature(**changes: Any) -> dict[str, Any]:
        return {"name": "x", "kind": "category", **changes}

    yield "60,000 drift bins", {"reference": number_reference(60_000)}
    yield "one drift bin too many", {"reference": number_reference(MAX_BINS)}
    yield "features", {"signature": signature_with(features=[{"name": f"x{i}"} for i in range(MAX_FEATURES + 1)])}
    yield "classes", {"signature": signature_with(classes=[f"c{i}" for i in range(MAX_CLASSES + 1)])}
    yield "categories", {"signature": signature_with(features=[feature(categories=[str(i) for i in range(MAX_CATEGORIES + 1)])])}
    yield "a long name", {"signature": signature_with(features=[feature(name="x" * (MAX_NAME + 1))])}
    yield "a long class", {"signature": signature_with(classes=["a", "b" * (MAX_NAME + 1)])}
    yield "a long text", {"model_type": "x" * (MAX_TEXT + 1)}
    yield "a long key", {"tags": {"x" * (MAX_NAME + 1): "y"}}
    yield "feature_names", {"feature_names": [f"x{i}" for i in range(MAX_FEATURES + 1)]}
    yield "a million lists", {"note": [[]] * 1_000_000}


@pytest.mark.parametrize("changes", [pytest.param(changes, id=name) for name, changes in too_much()])
def test_a_manifest_that_says_too_much_is_refused_in_both_layouts(tmp_path: Path, changes: dict[str, Any]) -> None:
    files, manifest = good()
    store = Store(tmp_path / "models")
    point_to = put(store.root, files, orjson.dumps({**orjson.loads(manifest), **changes}))
    point(store, point_to)
    slot = Slot(store, policy=ALLOW_ALL)
    with Memory() as memory:
        assert reason_of(slot) == "manifest"
    assert memory.peak < 60 * MEGABYTE
    assert slot.refusal is not None
    assert len(slot.refusal.message) < 200
    if "signature" not in changes:  # a legacy layout brings none
        write_legacy(tmp_path / "legacy", **changes)
        assert reason_of(Slot(Store(tmp_path / "legacy"), policy=ALLOW_ALL)) == "manifest"


def test_golden_examples_and_metrics_are_bounded(tmp_path: Path) -> None:
    files, _ = good()
    store = Store(tmp_path)
    for name, raw, reason in (
        ("golden.json", b'{"rows":[' + b"{}," * 1_100_000 + b"{}]}", "golden"),
        ("golden.json", b'{"rows":[' + b"{}," * 600_000 + b"{}]}", "golden"),
        (METRICS, b'{"a":[' + b"[]," * 500_000 + b"[]]}", "manifest"),
        (METRICS, b" " * (5 << 20) + b"{}", "manifest"),
    ):
        changed = {**files, name: raw}
        point(store, put(store.root, changed, describe(changed, bundle_manifest(version=VERSION))))
        assert reason_of(Slot(store, policy=ALLOW_ALL)) == reason


def test_a_roll_back_goes_on_to_the_newest_undamaged_version_and_says_what_it_skipped(store: Store) -> None:
    for _ in range(3):
        publish_iris(store, logistic(), onnx=True)
    for entry, kind in zip(store.entries()[1:3], ("pipe", "sparse"), strict=True):
        (entry.folder / JOBLIB).unlink()
        KINDS[kind](entry.folder / JOBLIB)
    entry = store.roll_back()
    assert (entry.version, len(entry.skipped)) == (1, 2)
    assert [sentence.split()[1] for sentence in entry.skipped] == ["3", "2"]
    assert read_bundle(entry.folder).version == "1"


def skops_file(path: Path, **members: bytes) -> tuple[Path, dict[str, Any]]:
    """A model in the format of skops with one array in a list, incompressible padding, and other members in place of its own."""
    estimator = LogisticRegression(max_iter=500).fit(*iris())
    estimator.extra = [np.zeros(2_000_000)]
    skops.io.dump(estimator, path)
    with zipfile.ZipFile(path) as archive:
        schema = orjson.loads(archive.read("schema.json"))
        files = {name: archive.read(name) for name in archive.namelist()}
    extra = schema["content"]["content"]["extra"]
    array = extra["content"][0]["file"]
    path.unlink()
    rewrite(
        path, {**files, "pad": os.urandom(400_000), **{array if name == "array" else name: raw for name, raw in members.items()}}
    )
    return path, schema


def rewrite(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)


def with_references(path: Path, schema: dict[str, Any], count: int) -> Path:
    """The file with so many objects that all name the one array."""
    extra = schema["content"]["content"]["extra"]
    extra["content"] = [{**extra["content"][0], "__id__": 10**9 + number} for number in range(count)]
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    rewrite(path, {**files, "schema.json": orjson.dumps(schema)})
    return path


def npy(shape: tuple[int, ...]) -> bytes:
    """The header of an array of this shape, with eight bytes of data."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(8)


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return buffer.getvalue()


def skops_bombs(folder: Path) -> Iterator[tuple[str, Path]]:
    path, schema = skops_file(folder / "references.skops")
    yield "300 references to 16 MB", with_references(path, schema, 300)
    yield "a header of 8 TB", skops_file(folder / "header.skops", array=npy((10**12,)))[0]
    yield "an archive in the archive", skops_file(folder / "inner.skops", array=npz(data=bytes(500 << 20)))[0]
    yield "a header in an inner archive", skops_file(folder / "npz.skops", array=npz(data=npy((10**9, 10**9))))[0]
    yield "a large schema", skops_file(folder / "schema.skops", **{"schema.json": b'{"a":[' + b"[]," * 20_000_000 + b"[]]}"})[0]
    yield "many objects", skops_file(folder / "nodes.skops", **{"schema.json": b'{"__loader__":1},' * 500_000})[0]


def test_a_model_in_the_format_of_skops_cannot_fill_the_memory(tmp_path: Path) -> None:
    tried, highest = 0, 0
    for name, path in skops_bombs(tmp_path):
        with Memory() as memory, pytest.raises(BundleRefused) as refused:
            skops_to_joblib(path, 256 << 20)
        assert refused.value.reason == "forbidden", name
        highest, tried = max(highest, memory.peak), tried + 1
    note(f"{tried} skops bombs, peak of the memory +{highest / MEGABYTE:.0f} MB")
    assert highest < 60 * MEGABYTE


def test_a_good_model_in_the_format_of_skops_is_loaded(tmp_path: Path) -> None:
    path, _ = skops_file(tmp_path / "good.skops")
    assert skops_to_joblib(path, 256 << 20)


def test_a_type_that_is_not_listed_is_named(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=500).fit(*iris())
    estimator.extra = subprocess.Popen
    skops.io.dump(estimator, tmp_path / "model.skops")
    with pytest.raises(BundleRefused, match=r"subprocess\.Popen") as refused:
        skops_to_joblib(tmp_path / "model.skops", 256 << 20)
    assert refused.value.reason == "forbidden"


@pytest.mark.filterwarnings("ignore")  # MLflow warns of itself
def test_a_download_is_bounded_in_bytes_and_time(tmp_path: Path) -> None:
    """A tracking folder whose run keeps an endless file where a model should be."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment("x", artifact_location=f"file://{tmp_path}/artifacts"))
    artifacts = Path(run.info.artifact_uri.removeprefix("file://")) / "model"
    artifacts.mkdir(parents=True)
    sparse(artifacts / "sparse.bin", 1_000_000_000)
    os.mkfifo(artifacts / "pipe.bin")
    (artifacts / "good.bin").write_bytes(b"right")
    (tmp_path / "target").mkdir()
    download = Download(uri, f"runs:/{run.info.run_id}", tmp_path / "target", seconds=60)
    try:
        assert download.fetch("model/good.bin", 5) == b"right"
        with pytest.raises(BundleRefused) as refused:
            download.fetch("model/sparse.bin", 1_000_000)
        assert refused.value.reason == "manifest"
        assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "target").iterdir()) <= 2_000_000
    finally:
        download.close()
    download = Download(uri, f"runs:/{run.info.run_id}", tmp_path / "target", seconds=1)
    try:
        with pytest.raises(BundleRefused) as refused:
            download.fetch("model/pipe.bin", 1_000_000)
        assert (refused.value.reason, refused.value.final) == ("unreadable", False)
    finally:
        download.close()
