"""Text of users on a terminal: it is shown and moves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.cli import main
from serve_app.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J", "a\\x1b[2J"),
        ("a\rb\nc\bd\x07", "a\\rb\\nc\\x08d\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("caf\udce9.csv", "caf\\udce9.csv"),
        ("$x_{^ 日本 עברית 😀 \\", "$x_{^ 日本 עברית 😀 \\"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_error_about_a_column_holds_no_control_character(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a\x1b[2J\x9b,y\n1,a\n2,b\n3,a\n4,b\n5,a\n")
    arguments = ["train", "--data", str(table), "--target", "y\x1b[1A", "--no-tracking", "--model-dir", str(tmp_path / "models")]
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert "y\\x1b[1A" in err
    assert not any(char != "\n" and printable(char) != char for char in err)
