"""The house: names of modules, docstrings, and what a fresh clone needs."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

from serve_app.cli import main

ROOT = Path(__file__).parents[2]
PACKAGES = ("serve_app", "training", "kuberay", "monitoring")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name]


def test_no_two_modules_have_the_same_name() -> None:
    names = Counter(path.stem for path in MODULES if path.stem not in ("__init__", "__main__"))
    assert len(names) > 60
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)


def test_every_folder_of_the_top_has_its_line_in_the_readme() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT} - {".ci", ".github"}
    lines = set(re.findall(r"^\| `([\w.-]+)/` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert lines == folders - {"requirements"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_a_page_links_to_files_and_names_targets_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    makefiles = "".join(path.read_text() for path in tracked("Makefile", "*.mk"))
    targets = set(re.findall(r"^([\w-]+):", makefiles, re.MULTILINE))
    assert [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / link).exists()] == []
    assert [name for name in re.findall(r"\bmake ([a-z][\w-]*\w)(?![\w*-])", code(text)) if name not in targets] == []


def test_every_decision_has_its_line_in_the_index_and_its_sections() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert re.findall(r"\]\((.+)\)", (folder / "README.md").read_text()) == [path.name for path in pages]
    for number, path in enumerate(pages, 1):
        title, *_ = text = path.read_text().splitlines()
        assert title.startswith(f"# {number:04d} ")
        assert path.name.startswith(f"{number:04d}-")
        assert text[2].startswith("Status: ")
        assert {"## Context", "## Decision"} <= set(text)


def code(text: str) -> str:
    """The parts of a Markdown page that are code."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def test_pre_commit_runs_tools_of_the_environment_that_make_check_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    tools = {hook["entry"].split()[0] for hook in config["repos"][0]["hooks"]}
    checks = re.search(r"^CHECKS := (.+?[^\\])$", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert checks
    assert {Path(tool).name for tool in tools} == set(re.findall(r'"([\w-]+)', checks[1]))


def test_the_typing_marker_is_beside_each_package_of_the_wheel() -> None:
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").is_file()


def test_the_console_script_is_the_command_line() -> None:
    assert resolve_name(PROJECT["project"]["scripts"]["iris-api"]) is main


def test_every_python_of_the_classifiers_is_tested() -> None:
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    assert jobs["pythons"]["strategy"]["matrix"]["python"] == versions[1:]
    assert jobs["pythons"]["steps"][-1]["run"] == "make check test check-python"


def test_the_environment_may_be_anywhere() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if not line.startswith("#")]
    installing = [line for line in lines if "uv pip install" in line]
    assert len(installing) >= 4
    assert [line for line in installing if "--python" not in line] == []
    assert [line for line in lines if ".venv" in line] == ["VENV ?= .venv"]
    for file in (*ROOT.glob("*/*.mk"), *(ROOT / ".ci").iterdir(), *(ROOT / ".github" / "workflows").iterdir()):
        assert ".venv" not in file.read_text(), file
