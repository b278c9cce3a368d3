"""Tables in buckets: read like those of this machine, and one sentence that names the fix for whatever is wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from pyarrow.fs import FileSelector

from serve_app.artifacts.manifest import sha256
from serve_app.batch.pool import in_process
from serve_app.batch.run import Outcome, score
from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import IrisApiError
from serve_app.tables import attempts
from serve_app.tables.fetch import fetched
from serve_app.tables.frame import Table, read_table
from serve_app.tables.location import Location
from serve_app.tables.scratch import ScratchSpace
from tests.support import bucket_servers
from tests.support.bucket_servers import BucketServer
from tests.support.file_server import Served, file_server
from tests.support.scoring import results
from training.pipeline import train
from training.train_options import TrainOptions

random = np.random.default_rng(7)
HOUSES = pd.DataFrame({"rooms": random.integers(1, 9, 300), "city": random.choice(["Köln", "Ulm"], 300)})
HOUSES["price"] = HOUSES.rooms * 10.5 + (HOUSES.city == "Ulm") * 7
CSV = HOUSES.to_csv(index=False).encode()
KEY = "in/häuser #1 100%25 ä?b.csv"
NAMES = ("AWS", "GOOGLE", "STORAGE", "CLOUDSDK")


@pytest.fixture(scope="module", params=["gs", "s3"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    with bucket_servers.google(tmp_path_factory.mktemp("gcs")) if request.param == "gs" else bucket_servers.s3() as server:
        yield server


@pytest.fixture
def bucket(running: BucketServer, monkeypatch: pytest.MonkeyPatch) -> BucketServer:
    lead_to(running.environment, monkeypatch)
    return running


def lead_to(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing of this machine's clouds in the environment but these variables."""
    for name in [name for name in os.environ if name.startswith(NAMES)]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def read(uri: str, folder: Path, *, limit: int = 1 << 30, allow_http: bool = False) -> Table:
    with fetched(Location(uri, allow_http=allow_http), ScratchSpace(folder, limit), lambda _: nullcontext()) as location:
        table = read_table(location)
    assert list(folder.iterdir()) == [], "nothing of a download stays"
    return table


def read_bytes(uri: str, folder: Path) -> bytes:
    """The copy of a file."""
    with fetched(Location(uri), ScratchSpace(folder, 1 << 30), lambda _: nullcontext()) as location:
        return (Path(location.scratch) / location.copy_path).read_bytes()


def complaint(uri: str, folder: Path, **options: Any) -> str:
    with pytest.raises(IrisApiError) as raised:
        read(uri, folder, **options)
    sentence = str(raised.value)
    assert "not-a-secret" not in sentence
    assert "\n" not in sentence
    return sentence


def test_a_key_is_written_as_it_is(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.put(KEY, CSV)
    table = read(bucket.uri(KEY), tmp_path)
    assert (len(table.frame), table.sha256) == (300, sha256(CSV))


@pytest.mark.parametrize("name", ["years", "years/", "years/*/*.csv"])
def test_a_folder_is_read_as_on_this_machine(bucket: BucketServer, tmp_path: Path, name: str) -> None:
    for year in ("2025", "2026"):
        bucket.put(f"years/year={year}/part.csv", CSV)
        bucket.put(f"years/year={year}/_SUCCESS", b"")
        bucket.put(f"years/year={year}/.hidden.csv", b"x")
    local = tmp_path / "years"
    for year in ("2025", "2026"):
        (local / f"year={year}").mkdir(parents=True)
        (local / f"year={year}" / "part.csv").write_bytes(CSV)
    (tmp_path / "scratch").mkdir()
    table, expected = read(bucket.uri(name), tmp_path / "scratch"), read_table(local)
    assert table.frame.equals(expected.frame)
    assert list(table.frame.columns) == ["rooms", "city", "price", "year"]
    if "*" not in name:
        assert table.sha256 == expected.sha256


@pytest.mark.parametrize("ending", ["parquet", "csv.gz", "dat"])
def test_a_file_is_known_by_its_content(bucket: BucketServer, tmp_path: Path, ending: str) -> None:
    HOUSES.to_parquet(tmp_path / "t.parquet")
    body = {"parquet": (tmp_path / "t.parquet").read_bytes(), "csv.gz": gzip.compress(CSV), "dat": CSV}[ending]
    (tmp_path / "t.parquet").unlink()
    bucket.put(f"houses.{ending}", body)
    assert read(bucket.uri(f"houses.{ending}"), tmp_path).frame["rooms"].tolist() == HOUSES.rooms.tolist()


def test_a_long_key_is_read(bucket: BucketServer, tmp_path: Path) -> None:
    key = f"{'ä' * 200}/{'b' * 300}.csv"
    bucket.put(key, CSV)
    assert read(bucket.uri(key), tmp_path).sha256 == sha256(CSV)


def test_a_download_whose_connections_break_is_whole(bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"a,b\n" + b"1,2\n" * 6_000_000
    bucket.put("whole/large.csv", body)
    monkeypatch.setattr(attempts, "PAUSE", 0.01)
    with bucket_servers.cutting_proxy(bucket.port, after=2_000_000, times=3) as (port, cuts):
        lead_to(bucket.through(port), monkeypatch)
        assert read_bytes(bucket.uri("whole/large.csv"), tmp_path) == body
    assert cuts() == 3


def test_a_table_that_is_too_large_is_refused_before_it_is_read(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.put("large/a.csv", CSV)
    bucket.put("large/b.csv", CSV)
    assert "--scratch-bytes" in complaint(bucket.uri("large"), tmp_path, limit=2 * len(CSV) - 1)
    assert len(read(bucket.uri("large"), tmp_path, limit=2 * len(CSV)).frame) == 600


def test_what_is_not_there_gets_a_sentence(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.put("in/notes.txt", b"no table")
    assert "does not exist" in complaint(bucket.uri("nothing.csv"), tmp_path)
    assert "does not exist" in complaint(f"{bucket.scheme}://no-bucket-of-ours/t.csv", tmp_path)
    assert "does not exist" in complaint(f"{bucket.scheme}://no-bucket-of-ours/*.csv", tmp_path)
    assert "names no bucket" in complaint(f"{bucket.scheme}:///t.csv", tmp_path)
    assert "newest version" in complaint(bucket.uri("t.csv?versionId=3"), tmp_path)


def test_a_server_that_cannot_be_reached_gets_a_sentence(
    bucket: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_to(bucket.through(1), monkeypatch)
    assert "HTTPS_PROXY" in complaint(bucket.uri("t.csv"), tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert "kuberay/components/data-source" in complaint(bucket.uri("t.csv"), tmp_path)
    name = "STORAGE_EMULATOR_HOST" if bucket.scheme == "gs" else "AWS_ENDPOINT_URL"
    monkeypatch.setenv(name, "https://nowhere.invalid")
    assert "DNS" in complaint(bucket.uri("t.csv"), tmp_path)
    monkeypatch.setenv(name, "http://storage.example.com")
    assert "--allow-http" in complaint(bucket.uri("t.csv"), tmp_path)


def test_a_model_of_a_bucket_scores_into_the_bucket(bucket: BucketServer, tmp_path: Path) -> None:
    bucket.put("houses/one.csv", CSV)
    uri = bucket.uri("houses/")
    options = TrainOptions(data=uri, target="price", model_dir=tmp_path / "models", n_estimators=3, no_tracking=True)
    train(options, lambda _: nullcontext())
    verdict = json.loads((tmp_path / "models" / "verdict.json").read_text())
    assert (verdict["data"]["name"], verdict["data"]["sha256"]) == (uri, sha256(CSV))

    def run(data: str, out: str) -> Outcome:
        scoring = ScoreOptions(data=data, out=out, model_dir=tmp_path / "models", part_bytes=1000)
        return score(scoring, lambda _: nullcontext(), in_process)

    (tmp_path / "table.csv").write_bytes(CSV)
    expected = run(str(tmp_path / "table.csv"), str(tmp_path / "out"))
    outcome = run(uri, bucket.uri("scores/"))
    assert (outcome.rows, outcome.digest) == (300, expected.digest)
    again = run(uri, bucket.uri("scores/"))
    assert again.already == again.parts == outcome.parts > 1
    copies = tmp_path / "copies"
    copies.mkdir()
    place = Location(bucket.uri("scores"))
    for info in place.filesystem.get_file_info(FileSelector(place.path)):
        with place.filesystem.open_input_file(info.path) as file:
            (copies / info.base_name).write_bytes(file.read_at(info.size, 0))
    assert results(copies) == results(tmp_path / "out")
    assert parquet.ParquetFile(copies / "part-000000.parquet").schema_arrow.names[0] == "prediction"


def test_credentials_that_are_missing_get_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "scratch").mkdir()
    with file_server() as server:
        server.fallback = Served(status=403)
        lead_to({"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true"}, monkeypatch)
        assert "set AWS_ACCESS_KEY_ID" in complaint("s3://tables/t.csv", tmp_path / "scratch")
        sentence = complaint("s3://reader:not-a-secret@tables/t.csv", tmp_path / "scratch")
        assert "s3://tables/t.csv" in sentence
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        assert "grant" in complaint("s3://tables/t.csv", tmp_path / "scratch")
        lead_to({"STORAGE_EMULATOR_HOST": server.url}, monkeypatch)
        assert "set GOOGLE_APPLICATION_CREDENTIALS" in complaint("gs://tables/t.csv", tmp_path / "scratch")
        endpoint = f"endpoint_override={server.url.removeprefix('http://')}&scheme=http"
        lead_to({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}, monkeypatch)
        assert "none.json" in complaint(f"gs://tables/t.csv?{endpoint}", tmp_path / "scratch")


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_no_record_of_a_training_holds_a_credential(tmp_path: Path, scheme: str) -> None:
    """Everything that the process writes, MLflow's files included, is searched for the signature and the password."""
    secret = "hunter2secret"
    with file_server() as web, bucket_servers.s3() as server:
        web.files["/houses.csv"] = Served(CSV)
        server.put("houses.csv", CSV)
        uri = f"{web.url}/houses.csv?X-Signature={secret}"
        if scheme == "s3":
            uri = f"s3://reader:{secret}@tables/houses.csv"
        command = [sys.executable, "-W", "ignore", "-m", "training", "--data", uri, "--target", "price", "--n-estimators", "3"]
        if scheme == "s3":  # one run with MLflow is enough
            command.append("--no-tracking")
        environment = {**os.environ, **server.environment, "MODEL_DIR": str(tmp_path / "run" / "models")}
        (tmp_path / "run").mkdir()
        process = subprocess.run(
            command,
            cwd=tmp_path / "run",
            env={**environment, "PYTHONPATH": str(bucket_servers.ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert process.returncode == 0, process.stdout + process.stderr
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(written) > 5
    assert [path for path, body in written.items() if secret.encode() in body] == []
    assert secret not in process.stdout + process.stderr
    name = json.loads((tmp_path / "run" / "models" / "verdict.json").read_text())["data"]["name"]
    assert name == (f"{web.url}/houses.csv" if scheme == "http" else "s3://tables/houses.csv")
