"""The table of the adopted pipelines, printed at the end."""

from __future__ import annotations

import pytest

LINES = pytest.StashKey[list[str]]()
HEAD = f"{'pipeline':36} {'backend':13} {'bundle':>9} {'one row':>10} {'given model':>12} {'difference':>11}"


@pytest.fixture
def lines(pytestconfig: pytest.Config) -> list[str]:
    """One line for each pipeline."""
    return pytestconfig.stash.setdefault(LINES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("adopted with one command and served")
        for line in (HEAD, *lines):
            terminalreporter.write_line(line)
