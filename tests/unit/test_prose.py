"""The pages, alerts, panels and messages keep the rules of style of tests/support/prose.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from monitoring import dashboards
from tests.support import prose

ROOT = Path(__file__).parents[2]
SKIPPED = {"build", "models", "node_modules", "mlruns"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part in SKIPPED or (part.startswith(".") and part != ".github") for part in path.relative_to(ROOT).parts)
)
QUOTES = {("docs/reference/protocols-conformance.md", "exclamation mark")}
"""Pages that quote the messages of other programs, and the rule that these break."""

PROBLEMS = ("problem", "HttpProblem", "ProblemDetails", "Problem", "NoModel", "BundleRefused")
"""What makes the texts that clients get."""

ERRORS = ("UsageError", "StoreError", "BackendUnavailable", "BadParameter", "CommandError")
"""What makes the texts that users of the commands get."""


def texts_of_alerts() -> list[tuple[str, str]]:
    groups = yaml.safe_load((ROOT / "monitoring/base/rules/alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return [
        (f"{rule['alert']}.{name}", re.sub(r"\{\{.*?\}\}", "…", rule["annotations"][name]))
        for rule in rules
        for name in ("summary", "description")
    ]


def texts_of_panels() -> list[tuple[str, str]]:
    documents = [json.loads(text) for text in dashboards.files().values()]
    panels = [panel for document in documents for panel in document["panels"] if panel["type"] != "row"]
    return [(panel["title"], panel["description"]) for panel in panels]


def texts_of_messages(*folders: str, callables: tuple[str, ...]) -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in prose.messages(path.read_text(), callables)
    ]


def broken(texts: list[tuple[str, str]]) -> list[str]:
    return [f"{name}: {finding}" for name, text in texts for finding in prose.findings_of_message(text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_keeps_the_rules(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = prose.findings(path.read_text().splitlines())
    assert [f"{name}:{finding}" for finding in found if (name, finding.rule) not in QUOTES] == []


def test_the_pages_are_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", "kuberay/README.md", "docs/reference/command-line.md", "docs/reference/settings.md"} <= names
    assert len(names) > 70


def test_alerts_keep_the_rules() -> None:
    texts = texts_of_alerts()
    assert len(texts) > 60
    assert broken(texts) == []


def test_a_panel_is_described_in_two_short_sentences() -> None:
    texts = texts_of_panels()
    assert len(texts) > 50
    assert broken(texts) == []
    assert [(title, text) for title, text in texts if len(text) > 110 or len(prose.sentences(text)) > 2] == []


def test_problems_keep_the_rules() -> None:
    texts = texts_of_messages("serve_app", callables=PROBLEMS)
    assert len(texts) > 60
    assert broken(texts) == []


def test_errors_of_commands_keep_the_rules() -> None:
    texts = texts_of_messages("serve_app", "training", "kuberay", "monitoring", callables=ERRORS)
    assert len(texts) > 200
    assert broken(texts) == []


@pytest.mark.parametrize("rule", prose.RULES, ids=lambda rule: rule.name)
def test_a_rule_finds_its_example(rule: prose.Rule) -> None:
    assert rule.name in {finding.rule for finding in prose.findings([rule.example])}


@pytest.mark.parametrize(
    "text",
    [
        "Users who publish need a key, and an attacker who writes the store needs none.",
        "A replica that has no model answers with 503.",
        "Without a key, the API answers everybody.",
        "What do you need?",
        "The port is 8000, and the `Turn` of `Warden!` is code.",
        "The number of requests that replicas answer: 300.",
        "Set `e.g.` or ``a ` whoever`` in code.",
        "[The terms](whoever.md) of the model.",
    ],
)
def test_plain_english_is_not_found(text: str) -> None:
    assert prose.findings([text]) == []


def test_a_sentence_and_a_cell_have_a_limit() -> None:
    long = " ".join(f"word{index}" for index in range(prose.WORDS_OF_A_SENTENCE + 1))
    assert [finding.rule for finding in prose.findings([f"{long}."])] == ["long sentence"]
    assert prose.findings([f"{long.rpartition(' ')[0]}."]) == []
    cell = "A. " * (prose.CHARACTERS_OF_A_CELL // 3)
    assert prose.findings([f"| key | {cell.strip()} |"]) == []
    assert [finding.rule for finding in prose.findings([f"| key | {cell}A. B. C. |"])] == ["long cell"]


def test_code_comments_and_links_are_no_prose() -> None:
    page = """# Title

<!-- whoever reads this -->

```sh
echo "please simply e.g. run it!"
```

- Each item is a sentence
  on two lines: whoever
  reads it.

| a | b |
| --- | --- |
| `whoever` | whoever calls |
"""
    assert [(finding.line, finding.rule) for finding in prose.findings(page.splitlines())] == [(9, "whoever"), (15, "whoever")]


def test_messages_are_read_from_the_code() -> None:
    source = """
raise StoreError(f"the store {path} is " "full of files")
other("not of this call")
problem(400, "code", detail="one two three")
"""
    assert list(prose.messages(source, ("StoreError", "problem"))) == [(2, "the store … is full of files"), (4, "one two three")]


def test_each_check_of_proselint_that_is_off_has_a_reason() -> None:
    config = json.loads((ROOT / ".proselintrc.json").read_text())
    assert {name for name, is_on in config["checks"].items() if not is_on} == set(config["reasons"])
