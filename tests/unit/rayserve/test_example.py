from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from serve_app.rayserve.example import MAX_INLINE, ROW_FILE, command

URL = "http://127.0.0.1:8000"


def sent(line: str) -> Any:
    """What curl would send when a shell reads this line."""
    data = shlex.split(line)[-1]
    return json.loads(Path(data[1:]).read_text() if data.startswith("@") else data)


@pytest.mark.parametrize(
    "row",
    [
        {"age": 5.1, "plan": "basic"},
        {"it's": 1.0, "$(touch x)": 2.0, "'; touch x; '": 3.0, "`a`": 4.0, "é\n": 5.0},
        {},
    ],
)
def test_a_short_row_is_part_of_the_command_and_quoted(tmp_path: Path, row: dict[str, Any]) -> None:
    line = command(URL, row, needs_key=False, folder=tmp_path)
    assert sent(line) == row
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_long_row_is_sent_from_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "with a space"
    folder.mkdir()
    row = {f"gene_{at}": 0.125 for at in range(2000)}
    line = command(URL, row, needs_key=True, folder=folder)
    assert len(line) < MAX_INLINE
    assert shlex.split(line)[-1] == f"@{folder / ROW_FILE}"
    assert sent(line) == row
    assert "X-API-Key: $API_KEY" in line


def test_the_command_asks_no_proxy_where_the_environment_names_one(tmp_path: Path) -> None:
    plain, direct = (shlex.split(command(URL, {}, needs_key=False, folder=tmp_path, proxied=proxied)) for proxied in (False, True))
    assert [word for word in direct if word not in plain] == ["--noproxy", "*"]
