"""Keys: from either header, by name and date, from a file that changes, in constant time."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from serve_app.http.auth import MAX_FILE_BYTES, Key, Keys, KeysError, change_file, make_key, read_keys

check = Keys("s3cret-ключ").check
KEY = "s3cret-ключ".encode()


def whose(keys: Keys, key: str) -> str:
    found = keys.check(key.encode(), None)
    return found if isinstance(found, str) else found.name


def entry(key: str, name: str = "alice", **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


def write(file: Path, *entries: dict[str, Any]) -> None:
    file.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("key", "authorization"),
    [(KEY, None), (None, b"Bearer " + KEY), (None, b"bearer  " + KEY + b" "), (KEY, b"Bearer " + KEY), (KEY, b"Basic x")],
)
def test_the_key_is_taken_from_either_header(key: bytes | None, authorization: bytes | None) -> None:
    found = check(key, authorization)
    assert isinstance(found, Key)
    assert found.name == "API_KEY"


def test_of_two_headers_x_api_key_decides() -> None:
    assert isinstance(check(KEY, b"Bearer of-a-mesh"), Key)
    assert check(b"other", b"Bearer " + KEY) == "wrong"
    assert check(b"", b"Bearer " + KEY) == "missing"


@pytest.mark.parametrize(
    ("key", "authorization"),
    [(None, None), (b"", None), (None, b""), (None, b"Bearer"), (None, b"Bearer  "), (None, b"Basic " + KEY), (None, KEY)],
)
def test_who_shows_no_key_is_told_that_it_is_missing(key: bytes | None, authorization: bytes | None) -> None:
    assert check(key, authorization) == "missing"


@pytest.mark.parametrize(
    ("key", "authorization"),
    [
        (KEY + b"x", None),
        (KEY[:-1], None),
        (KEY.upper(), None),
        (b"\xff\x00", None),
        (hashlib.sha256(KEY).digest(), None),
        (None, b"Bearer x"),
    ],
)
def test_who_shows_another_key_is_told_that_it_is_wrong(key: bytes | None, authorization: bytes | None) -> None:
    assert check(key, authorization) == "wrong"


def test_without_any_key_everybody_is_let_in() -> None:
    for key in (None, b"any"):
        assert not isinstance(Keys().check(key, None), str)


def test_keys_of_the_file_are_known_by_name_beside_the_plain_one(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one", "alice"), entry("two", "bob"), entry("three", "alice"))
    keys = Keys("plain", file)
    assert [whose(keys, key) for key in ("one", "two", "three", "plain", "four")] == ["alice", "bob", "alice", "API_KEY", "wrong"]


def test_a_key_is_good_between_its_dates(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(
        file,
        entry("past", not_after="2020-01-31"),
        entry("future", not_before="2999-01-31T00:00:00Z"),
        entry("now", not_before="2020-01-31T00:00:00+02:00", not_after="2999-01-31"),
    )
    keys = Keys(None, file)
    assert [whose(keys, key) for key in ("past", "future", "now")] == ["wrong", "wrong", "alice"]


def test_a_step_of_the_clock_is_followed_by_the_dates_of_keys_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    now = time.time()
    soon = datetime.fromtimestamp(now + 1800, UTC).isoformat()
    write(file, entry("always"), entry("until soon", not_after=soon), entry("from soon", not_before=soon))
    keys = Keys(None, file)
    for step, good in ((3600, {"always", "from soon"}), (0, {"always", "until soon"}), (-3600, {"always", "until soon"})):
        monkeypatch.setattr(time, "time", lambda moment=now + step: moment)
        keys.refresh()
        assert {key for key in ("always", "until soon", "from soon") if whose(keys, key) != "wrong"} == good


def test_a_date_without_a_zone_is_utc(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one", not_after="1970-01-02"), entry("two", not_after="1970-01-02T02:00:00+02:00"))
    assert [key.not_after for key in read_keys(file)] == [86400.0, 86400.0]


def test_the_file_is_read_again_and_a_removed_key_is_dead(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one"), entry("two", "bob"))
    keys = Keys(None, file)
    assert whose(keys, "two") == "bob"
    write(file, entry("one"), entry("new", "carol"))
    keys.refresh()
    assert [whose(keys, key) for key in ("one", "two", "new")] == ["alice", "wrong", "carol"]
    write(file)
    keys.refresh()
    assert whose(keys, "one") == "wrong"


BROKEN = {
    "not JSON": b"[",
    "not a list": b'{"name": "alice"}',
    "not objects": b"[1]",
    "no name": b'[{"sha256": "%s"}]' % (b"a" * 64),
    "an odd name": b'[{"name": "a b", "sha256": "%s"}]' % (b"a" * 64),
    "a key in the open": b'[{"name": "alice", "sha256": "my-key"}]',
    "a misspelt date": b'[{"name": "alice", "sha256": "%s", "notafter": "2020-01-01"}]' % (b"a" * 64),
    "a date of another form": b'[{"name": "alice", "sha256": "%s", "not_after": "31.1.2020"}]' % (b"a" * 64),
    "a date that is a number": b'[{"name": "alice", "sha256": "%s", "not_after": 5}]' % (b"a" * 64),
    "the same key twice": b'[{"name": "a", "sha256": "%s"}, {"name": "b", "sha256": "%s"}]' % (b"a" * 64, b"a" * 64),
    "an unknown scope": b'[{"name": "alice", "sha256": "%s", "scopes": ["predict", "admin"]}]' % (b"a" * 64),
    "a scope that is no text": b'[{"name": "alice", "sha256": "%s", "scopes": ["predict", ["manage"]]}]' % (b"a" * 64),
    "scopes as text": b'[{"name": "alice", "sha256": "%s", "scopes": "predict manage"}]' % (b"a" * 64),
    "scopes without predict": b'[{"name": "alice", "sha256": "%s", "scopes": ["manage"]}]' % (b"a" * 64),
    "no scope": b'[{"name": "alice", "sha256": "%s", "scopes": []}]' % (b"a" * 64),
    "scopes that are null": b'[{"name": "alice", "sha256": "%s", "scopes": null}]' % (b"a" * 64),
    "too large": b" " * MAX_FILE_BYTES + b"[]",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_keeps_the_keys_known_before_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one"))
    keys = Keys(None, file)
    file.write_bytes(raw)
    with caplog.at_level(logging.ERROR, "iris_api.keys"):
        keys.refresh()
        keys.refresh()
    assert whose(keys, "one") == "alice"
    assert len(caplog.records) == 1
    assert str(file) in caplog.records[0].why  # type: ignore[attr-defined]
    with pytest.raises(KeysError, match=r"keys\.json"):
        read_keys(file)


def test_a_file_that_went_away_keeps_its_keys_and_one_that_was_never_there_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one"))
    keys = Keys(None, file)
    file.unlink()
    keys.refresh()
    assert whose(keys, "one") == "alice"
    assert whose(Keys(None, file), "one") == "wrong"
    assert Keys(None, file).check(None, None) == "missing"


OLD, NEW = secrets.token_hex(32), secrets.token_hex(32)


def test_a_new_plain_key_is_taken_from_its_file_and_the_old_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "API_KEY").write_text(f"{OLD}\n")
    keys = Keys(OLD, folder=tmp_path)
    assert [whose(keys, key) for key in (OLD, NEW)] == ["API_KEY", "wrong"]
    (tmp_path / "API_KEY").write_text(NEW)
    keys.refresh()
    assert [whose(keys, key) for key in (OLD, NEW)] == ["wrong", "API_KEY"]


def test_the_previous_key_is_accepted_until_its_file_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one"))
    (tmp_path / "API_KEY").write_text(OLD)
    keys = Keys(OLD, file, folder=tmp_path)
    (tmp_path / "API_KEY").write_text(NEW)
    (tmp_path / "API_KEY_PREVIOUS").write_text(OLD)
    keys.refresh()
    assert [whose(keys, key) for key in (OLD, NEW, "one")] == ["API_KEY_PREVIOUS", "API_KEY", "alice"]
    (tmp_path / "API_KEY_PREVIOUS").unlink()
    keys.refresh()
    assert [whose(keys, key) for key in (OLD, NEW, "one")] == ["wrong", "API_KEY", "alice"]


@pytest.mark.parametrize("text", [None, b"", b"\n", b"short", b"replace-me-with-openssl-rand-hex-32", b"\xff" * 40])
def test_a_plain_key_that_is_missing_or_can_be_guessed_leaves_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes | None
) -> None:
    file = tmp_path / "API_KEY"
    file.write_text(OLD)
    keys = Keys(OLD, folder=tmp_path)
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text)
    with caplog.at_level(logging.ERROR, "iris_api.keys"):
        keys.refresh()
        keys.refresh()
    assert [whose(keys, key) for key in (OLD, "")] == ["API_KEY", "missing"]
    assert len(caplog.records) == 1
    assert str(file) in caplog.records[0].why  # type: ignore[attr-defined]


def test_a_made_key_is_good_for_its_days_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, made = make_key("alice", days=1)
    other, made_too = make_key("bob")
    assert key != other
    assert len(key) >= 32
    for item in (made, made_too):
        change_file(file, add=item)
    assert key not in file.read_text()
    keys = Keys(None, file)
    assert [whose(keys, one) for one in (key, other)] == ["alice", "bob"]
    (alice, bob) = read_keys(file)
    assert 86000 < alice.not_after - time.time() <= 86401
    assert bob.not_after == float("inf")
    assert change_file(file, remove="alice") == 1
    keys.refresh()
    assert [whose(keys, one) for one in (key, other)] == ["wrong", "bob"]
    assert change_file(file, remove="nobody") == 0


def test_only_a_named_key_whose_entry_says_so_may_manage(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one"), entry("two", scopes=["predict"]), entry("three", scopes=["predict", "manage"]))
    keys = Keys("plain", file, previous="previous")
    scopes = {}
    for key in ("one", "two", "three", "plain", "previous"):
        found = keys.check(key.encode(), None)
        assert isinstance(found, Key)
        scopes[key] = set(found.scopes)
    assert scopes.pop("three") == {"predict", "manage"}
    assert set(map(frozenset, scopes.values())) == {frozenset({"predict"})}
    anonymous = Keys().check(None, None)
    assert isinstance(anonymous, Key)
    assert anonymous.scopes == {"predict"}


def test_a_made_key_has_the_scope_that_is_asked_for_and_one_without_is_read_by_earlier_versions(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    change_file(file, add=make_key("alice", scopes=["manage"])[1])
    change_file(file, add=make_key("bob", scopes=["predict"])[1])
    assert [key.scopes for key in read_keys(file)] == [{"predict", "manage"}, {"predict"}]
    assert ["scopes" in each for each in json.loads(file.read_text())] == [True, False]


def test_a_scope_that_is_taken_away_is_gone_with_the_next_look(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one", scopes=["predict", "manage"]))
    keys = Keys(None, file)
    write(file, entry("one"))
    keys.refresh()
    found = keys.check(b"one", None)
    assert isinstance(found, Key)
    assert found.scopes == {"predict"}


def test_a_broken_file_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(b"[")
    with pytest.raises(KeysError):
        change_file(file, add=make_key("alice")[1])
    assert file.read_bytes() == b"["
    with pytest.raises(KeysError):
        make_key("a b")


def test_no_key_is_in_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.json"
    write(file, entry("one-secret"))
    with caplog.at_level(logging.DEBUG):
        keys = Keys("plain-secret", file)
        for key in ("one-secret", "plain-secret", "guessed-secret"):
            whose(keys, key)
        file.write_bytes(b'[{"name": "one-secret", "sha256": "one-secret"}]')
        keys.refresh()
    assert len(caplog.records) == 2
    assert not any("secret" in str(value) for record in caplog.records for value in vars(record).values())
