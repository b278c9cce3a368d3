"""A table from a web server: whole, unchanged and only over connections that the address allows, or one sentence."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests

from serve_app.artifacts.manifest import sha256
from serve_app.errors import BackendUnavailable, IrisApiError, UsageError
from serve_app.tables import attempts, scratch, web_file
from serve_app.tables.fetch import fetched
from serve_app.tables.frame import Table, read_table
from serve_app.tables.location import Location, sources
from serve_app.tables.scratch import ScratchSpace
from tests.support.certificates import self_signed
from tests.support.file_server import FileServer, Served, file_server

CSV = ("rooms,price\n" + "".join(f"{row % 7},{row * 1.5}\n" for row in range(300_000))).encode()
SIGNED = "?X-Amz-Signature=5ec4e7&X-Amz-Credential=AKIA"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        yield running


@contextmanager
def copied(uri: str, folder: Path, *, limit: int = 1 << 30, allow_http: bool = False) -> Iterator[Location]:
    with fetched(Location(uri, allow_http=allow_http), ScratchSpace(folder, limit), lambda _: nullcontext()) as location:
        yield location


def read(uri: str, folder: Path, **options: Any) -> Table:
    with copied(uri, folder, **options) as location:
        table = read_table(location)
    assert list(folder.iterdir()) == [], "nothing of a download stays"
    return table


def complaint(uri: str, folder: Path, **options: Any) -> str:
    """The sentence of the error, which repeats nothing secret."""
    with pytest.raises(IrisApiError) as raised, copied(uri, folder, **options):
        pass
    sentence = str(raised.value)
    for secret in ("5ec4e7", "AKIA", "hunter2"):
        assert secret not in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", ["/in/häuser 100%.csv", "/download", "/t.tsv.txt"])
def test_a_table_is_read_with_the_digest_of_its_bytes(server: FileServer, tmp_path: Path, name: str) -> None:
    server.files[name] = Served(CSV)
    table = read(server.url + name.replace("%", "%25"), tmp_path)
    assert (len(table.frame), table.sha256) == (300_000, sha256(CSV))


def test_a_parquet_file_is_known_by_its_content(server: FileServer, tmp_path: Path) -> None:
    frame = pd.DataFrame({"rooms": np.arange(20.0)})
    frame.to_parquet(tmp_path / "t.parquet")
    server.files["/export"] = Served((tmp_path / "t.parquet").read_bytes())
    (tmp_path / "t.parquet").unlink()
    assert read(f"{server.url}/export?format=parquet", tmp_path).frame.equals(frame)


def test_a_broken_download_goes_on_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.files["/t.csv"] = Served(CSV, breaks=[1_000_000, 500_000])
    assert read(f"{server.url}/t.csv", tmp_path).sha256 == sha256(CSV)
    assert server.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]


@pytest.mark.parametrize(
    "served",
    [
        Served(b"a,b\n" + CSV, breaks=[1_000_000], changes=CSV),
        Served(CSV, breaks=[1_000_000], ranges=False),
        Served(CSV, breaks=[1_000_000], etag="", headers={"Last-Modified": ""}),
        Served(CSV, breaks=[1_000_000], etag='W/"weak"', headers={"Last-Modified": ""}),
    ],
    ids=["changed meanwhile", "no ranges", "no tag", "a weak tag"],
)
def test_a_broken_download_begins_anew_when_the_rest_may_be_of_another_content(
    server: FileServer, tmp_path: Path, served: Served
) -> None:
    server.files["/t.csv"] = served
    assert read(f"{server.url}/t.csv", tmp_path).sha256 == sha256(CSV)


def test_a_connection_that_breaks_again_and_again_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.files["/t.csv"] = Served(CSV, breaks=[10] * 50)
    assert f"{server.url}/t.csv cannot be reached" in complaint(f"{server.url}/t.csv{SIGNED}", tmp_path)
    assert len(server.requests) == attempts.MAX_FAILURES


def test_a_server_that_is_overloaded_for_a_moment_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    busy = Served(CSV, status=503)
    server.files["/t.csv"] = busy
    original, answers = web_file._check_status, []

    def check(name: str, response: requests.Response) -> None:
        answers.append(response.status_code)
        if len(answers) == 2:
            busy.status = 200
        original(name, response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_file, "_check_status", check)
        assert read(f"{server.url}/t.csv", tmp_path).sha256 == sha256(CSV)
    assert answers == [503, 503, 200]


@pytest.mark.parametrize("length", [True, False], ids=["with its length", "without"])
def test_a_file_that_is_too_large_is_refused(server: FileServer, tmp_path: Path, *, length: bool) -> None:
    server.files["/t.csv"] = Served(CSV, length=length)
    assert "--scratch-bytes" in complaint(f"{server.url}/t.csv", tmp_path, limit=1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_fit_onto_the_disk_is_refused_before_it_is_read(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/t.csv"] = Served(CSV)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=scratch.RESERVE + len(CSV) - 1))
    assert "--scratch-dir" in complaint(f"{server.url}/t.csv", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=scratch.RESERVE + 2 * len(CSV)))
    assert read(f"{server.url}/t.csv", tmp_path).sha256 == sha256(CSV)


@pytest.mark.parametrize("name", ["/t.csv", "/t.csv.gz", "/t"])
@pytest.mark.parametrize("stored", [False, True], ids=["plain", "a file of gzip"])
def test_what_the_server_packs_for_the_way_is_unpacked(server: FileServer, tmp_path: Path, name: str, *, stored: bool) -> None:
    body = gzip.compress(CSV) if stored else CSV
    server.files[name] = Served(body, packed=True, breaks=[20_000])
    table = read(f"{server.url}{name}", tmp_path)
    assert (len(table.frame), table.sha256) == (300_000, sha256(body))


def test_a_packed_file_may_not_unpack_beyond_the_limit(server: FileServer, tmp_path: Path) -> None:
    server.files["/t.csv"] = Served(b"a\n" + b"1\n" * 5_000_000, packed=True)
    assert "--scratch-bytes" in complaint(f"{server.url}/t.csv", tmp_path, limit=1_000_000)


@pytest.mark.parametrize(
    ("served", "fix"),
    [
        (Served(status=401), "NETRC"),
        (Served(status=403), "signed address"),
        (Served(status=404), "correct the address"),
        (Served(status=418), "418"),
        (Served(b"<!doctype html><title>Sign in</title>", headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
        (Served(b"x", headers={"Content-Encoding": "br"}), "encoding br"),
        (Served(status=302, headers={"Location": "/t.csv"}), "redirected more than"),
        (Served(status=302, headers={"Location": "http://example.com/t.csv"}), "--allow-http"),
        (Served(status=302, headers={"Location": "ftp://example.com/t.csv"}), "not an address of a file"),
    ],
)
def test_an_answer_that_is_no_table_gets_a_sentence(server: FileServer, tmp_path: Path, served: Served, fix: str) -> None:
    server.files["/t.csv"] = served
    assert fix in complaint(f"{server.url}/t.csv{SIGNED}", tmp_path)
    assert fix in complaint(f"{server.url.replace('//', '//user:hunter2@')}/t.csv", tmp_path)


def test_https_is_never_redirected_to_plain_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    server.files["/t.csv"] = Served(CSV)
    certificate = self_signed(tmp_path / "tls", "localhost")
    (tmp_path / "data").mkdir()
    with file_server(certificate) as secure:
        secure.files["/t.csv"] = Served(CSV)
        secure.files["/moved"] = Served(status=307, headers={"Location": "/t.csv"})
        secure.files["/plain"] = Served(status=307, headers={"Location": f"{server.url}/t.csv"})
        assert "SSL_CERT_FILE" in complaint(f"{secure.url}/t.csv", tmp_path / "data")
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which take precedence
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert read(f"{secure.url}/moved", tmp_path / "data").sha256 == sha256(CSV)
        assert "plain http" in complaint(f"{secure.url}/plain{SIGNED}", tmp_path / "data", allow_http=True)
    assert server.requests == []


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("http://example.com/t.csv", "--allow-http"),
        ("https://nowhere.invalid/t.csv", "DNS"),
        ("https://localhost:1/t.csv", "refused"),
        ("https://", "not an address"),
        ("https://[half/t.csv", "not an address"),
    ],
)
def test_an_address_that_cannot_be_read_gets_a_sentence(tmp_path: Path, uri: str, fix: str) -> None:
    assert fix in complaint(uri, tmp_path)


def test_in_a_pod_a_blocked_connection_names_the_network_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NetworkPolicy" not in complaint("https://localhost:1/t.csv", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert "kuberay/components/data-source" in complaint("https://localhost:1/t.csv", tmp_path)


def test_the_same_content_has_the_same_stamp_and_another_content_another(server: FileServer, tmp_path: Path) -> None:
    stamps = []
    served = Served(CSV)
    for tag in ('"one"', '"one"', '"two"'):
        server.files["/t.csv"] = replace(served, etag=tag)
        with copied(f"{server.url}/t.csv", tmp_path) as location:
            stamps += [file.stamp for file in sources(location)[1]]
    assert stamps[0] == stamps[1] != stamps[2]


def test_a_proxy_is_asked_where_one_is_set(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.files["/t.csv"] = Served(CSV)
    assert read("http://data.team-a.svc/t.csv", tmp_path).sha256 == sha256(CSV)
    assert [path for path, _ in server.requests] == ["http://data.team-a.svc/t.csv"]


def test_nothing_is_written_to_a_web_address() -> None:
    with pytest.raises(UsageError, match="bucket"):
        _ = Location("https://example.com/out").filesystem


def test_a_folder_that_cannot_be_used_for_downloads_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises((UsageError, BackendUnavailable), match="--scratch-dir"),
        copied(f"{server.url}/t.csv", tmp_path / "file" / "x"),
    ):
        pass
