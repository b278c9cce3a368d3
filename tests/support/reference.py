"""The pages of docs/reference that are made from the code: `python -m tests.support.reference`. A test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from serve_app import cli
from tests.support import manifest_fields

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
ALERTS = ROOT / "monitoring" / "base" / "rules" / "alerts.yaml"
MAKEFILES = ("Makefile", "kuberay/k8s.mk", "monitoring/monitoring.mk")
TEMPLATE = re.compile(r"\{\{[^}]*\}\}")
"""A value that Prometheus fills in."""


def command_line() -> str:
    """Each command of `iris-api` with its arguments and options."""
    group: Any = typer.main.get_command(cli.app)
    lines = [
        "# Command line",
        "",
        "Each command of `iris-api` with its arguments and options. In a clone: `.venv/bin/iris-api`.",
    ]
    for name, command in _commands(group, "iris-api"):
        lines += ["", f"## {name}", "", *_paragraphs(command.help), *_parameters(command)]
    return _text(lines)


def make_targets() -> str:
    """Each target of the Makefiles, as `make help` lists them."""
    lines = ["# Make targets", "", "Each target of `make`, in the groups of `make help`."]
    for file in MAKEFILES:
        for line in (ROOT / file).read_text().splitlines():
            if line.startswith("##@ "):
                lines += ["", f"## {line[4:]}", "", "| target | effect |", "| --- | --- |"]
            elif match := re.match(r"([a-zA-Z0-9_-]+):.*?## (.*)", line):
                lines.append(f"| `make {match[1]}` | {_cell(match[2])} |")
    return _text(lines)


def alerts() -> str:
    """Each alert with its severity, how long its condition must hold, and what it says."""
    lines = [
        "# Alerts",
        "",
        "Each alert of `monitoring/base/rules/alerts.yaml`. "
        "The [runbook](../how-to/runbook.md) has a section for each. `…` is a value.",
    ]
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        lines += ["", f"## {group['name']}", "", "| alert | severity | holds for | says |", "| --- | --- | --- | --- |"]
        lines += [_alert(rule) for rule in group["rules"] if "alert" in rule]
    return _text(lines)


def manifest() -> str:
    """Each key of `metadata.json` with its type, its default and its meaning."""
    return _text(list(manifest_fields.lines()))


PAGES: Mapping[str, Callable[[], str]] = {
    "command-line.md": command_line,
    "make-targets.md": make_targets,
    "alerts.md": alerts,
    "manifest.md": manifest,
}
"""A page of the folder, and what makes its text."""


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        lazy = cli.LAZY_COMMANDS.get(name) if path == "iris-api" else None
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", lazy.load() if lazy else command


def _paragraphs(text: str | None) -> list[str]:
    parts = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", (text or "").replace("\f", ""))]
    return [line for part in parts if part for line in (part, "")]


def _parameters(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        is_option = parameter.param_type_name == "option"
        names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
        default = parameter.default if isinstance(parameter.default, str | int | float) else None
        is_flag = isinstance(default, bool)
        rows.append(
            f"| {', '.join(f'`{name}`' for name in names)} | {_cell(parameter.help or '')} "
            f"| {'' if default is None or is_flag else f'`{default}`'} |"
        )
    return ["| argument or option | meaning | default |", "| --- | --- | --- |", *rows] if rows else ["It has no options."]


def _alert(rule: Mapping[str, Any]) -> str:
    summary = TEMPLATE.sub("…", rule["annotations"]["summary"])
    return f"| `{rule['alert']}` | {rule['labels']['severity']} | {rule.get('for', 'at once')} | {_cell(summary)} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "&lt;")


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    for page, text_of in PAGES.items():
        (FOLDER / page).write_text(text_of())
