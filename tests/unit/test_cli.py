"""The command line: exit codes, aliases, and commands that are loaded only when they are called."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app import __version__
from serve_app.__main__ import with_default_command
from serve_app.cli import LAZY_COMMANDS, main, read_port
from serve_app.http.auth import Keys, read_keys
from serve_app.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(field.upper() for field in Settings.model_fields), "PORT"):
        monkeypatch.delenv(name, raising=False)


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_every_command_and_loads_none_of_them() -> None:
    heavy = ("training", "ray", "sklearn", "numpy", "pandas", "fastapi", "pydantic", "mlflow")
    program = "import sys; from serve_app.cli import main; code = main(['--help']); "
    listing = run(program + f"sys.exit(code or [name for name in {heavy} if name in sys.modules] or 0)")
    assert (listing.returncode, listing.stderr) == (0, "")
    assert all(f" {command} " in listing.stdout for command in (*LAZY_COMMANDS, "serve", "keys", "settings"))


@pytest.mark.parametrize("command", LAZY_COMMANDS)
def test_a_command_of_training_is_one_sentence_where_its_libraries_are_missing(command: str) -> None:
    hidden = "import sys; sys.modules |= dict.fromkeys(('training', 'tqdm', 'pandas', 'pyarrow')); "
    missing = run(hidden + f"from serve_app.cli import main; sys.exit(main(['{command}']))")
    assert missing.returncode == 2
    assert missing.stdout == ""
    (line,) = missing.stderr.splitlines()
    assert line.startswith(f"error: `iris-api {command}` needs `")


@pytest.mark.parametrize("command", LAZY_COMMANDS)
def test_a_lazy_command_shows_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"iris-api {command}" in capsys.readouterr().out


def test_models_are_trained_listed_promoted_and_rolled_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--model-dir", str(tmp_path / "models")]
    flags = ["--no-tracking", "--n-estimators", "5", "--force", "--tag", "team", "blue"]
    for _ in range(2):
        assert main(["train", *flags, *store]) == 0
    assert main(["rollback", *store]) == 0
    assert main(["promote", "2", *store]) == 0
    capsys.readouterr()
    assert main(["models", "--json", *store]) == 0
    assert [row["version"] for row in json.loads(capsys.readouterr().out)] == [1, 2]
    assert main(["train", "--floor", "accuracy=1.1", "--no-tracking", "--n-estimators", "5", *store]) == 3
    assert main(["promote", "9", *store]) == 1


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"iris-api {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["serve", "--nonsense"], ["keys"], ["keys", "make"], ["key", "--name", "a", "--revoke"]]
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["serve"]),
        (["--port", "1"], ["serve", "--port", "1"]),
        (["settings"], ["settings"]),
        (["--version"], ["--version"]),
        (["--help"], ["--help"]),
        (["--show-completion=bash"], ["--show-completion=bash"]),
    ],
)
def test_the_module_serves_when_no_command_is_named(arguments: list[str], expected: list[str]) -> None:
    assert with_default_command(arguments) == expected


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "8000.5", "٨٠٠٠"])
def test_a_port_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str) -> None:
    monkeypatch.setenv("PORT", port)
    assert main(["serve"]) == 2
    assert main(["serve", f"--port={port}"]) == 2
    for line, name in zip(capsys.readouterr().err.splitlines(), ("PORT", "--port"), strict=True):
        assert line.startswith(f"error: {name}: '{port}'")


def test_the_port_is_that_of_the_flag_then_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIP_HTTP_PORT", raising=False)
    assert read_port(None) == 8000
    monkeypatch.setenv("AIP_HTTP_PORT", "8080")
    assert read_port(None) == 8080
    monkeypatch.setenv("PORT", "9000")
    assert (read_port(None), read_port("7000")) == (9000, 7000)


def test_serve_check_refuses_a_wrong_setting_and_a_taken_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["serve", "--check", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["serve", "--check", "--port", str(port)]) == 0
    monkeypatch.setenv("ENVIRONMENT", "production")
    assert main(["serve", "--check", "--port", str(port)]) == 2
    assert "API_KEY" in capsys.readouterr().err


def test_settings_are_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    printed = capsys.readouterr().out
    assert main(["settings", "--write", str(tmp_path / "settings.md")]) == 0
    assert (tmp_path / "settings.md").read_text() == printed
    assert "`API_KEY`" in printed


def test_a_key_is_made_with_the_scope_that_the_option_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    assert main(["keys", "make", "--name", "olga", "--scope", "manage", "--file", str(file)]) == 0
    assert main(["keys", "make", "--name", "alice", "--file", str(file)]) == 0
    assert [(key.name, sorted(key.scopes)) for key in read_keys(file)] == [("olga", ["manage", "predict"]), ("alice", ["predict"])]
    capsys.readouterr()
    assert main(["keys", "make", "--name", "eve", "--scope", "admin", "--file", str(file)]) == 2
    assert "'predict', 'manage'" in capsys.readouterr().err
    assert len(read_keys(file)) == 2


@pytest.mark.parametrize(
    ("make", "revoke"), [(["keys", "make"], ["keys", "revoke"]), (["key"], ["key", "--revoke"])], ids=["keys", "alias"]
)
def test_a_key_is_made_by_one_command_and_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: list[str], revoke: list[str]
) -> None:
    file = tmp_path / "keys.json"
    assert main([*make, "--name", "alice", "--days", "30", "--file", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert len(key) >= 32
    assert key not in file.read_text()
    (entry,) = read_keys(file)
    assert Keys(None, file).check(key.encode(), None) == entry
    assert main([*revoke, "--name", "alice", "--file", str(file)]) == 0
    assert read_keys(file) == ()
    assert main([*revoke, "--name", "alice", "--file", str(file)]) == 1
    assert main([*make, "--name", "a b"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert captured.out == ""
