"""The style of this project's prose as rules: lines in, findings out.

proselint knows the errors of any English text. These rules add those of this project: words that the glossary replaces, sentences
without a subject or a verb, sentences and cells that are too long.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

WORDS_OF_A_SENTENCE = 40
CHARACTERS_OF_A_CELL = 200

PERSONS = (
    "users?|people|persons?|somebody|someone|nobody|anybody|anyone|everybody|everyone|operators|readers?|developers?|engineers?|"
    "administrators?|contributors?|authors?|maintainers?|attackers?|teams?|those"
)
"""Nouns that `who` may follow. A client is a program."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern that no sentence may contain, what to write instead, and a sentence that breaks the rule."""

    name: str
    pattern: re.Pattern[str]
    advice: str
    example: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence or cell that breaks a rule. `line` counts from 1."""

    line: int
    rule: str
    advice: str
    text: str

    def __str__(self) -> str:
        return f"{self.line}: {self.rule}: {self.advice}: {self.text}"


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list item, heading or cell without its markup, and the line on which it starts."""

    line: int
    text: str
    is_cell: bool = False


def _rule(name: str, pattern: str, advice: str, example: str, *, case_matters: bool = False) -> Rule:
    return Rule(name, re.compile(pattern, re.NOFLAG if case_matters else re.IGNORECASE), advice, example)


RULES: tuple[Rule, ...] = (
    _rule(
        "whoever", r"\bwho(?:ever|mever|soever)\b", "name the client, the user or the program", "Whoever calls the API needs a key."
    ),
    _rule(
        "who",
        rf"(?:^|(?!\b(?:{PERSONS})\b)(?<!\S)\S+ )who\b(?!.*\?$)",
        "`who` follows a person; a program takes `that`",
        "A replica who waits answers 503.",
    ),
    _rule(
        "no verb",
        r"^(?:left|not|once|seen|given|asked|told|measured|checked)\b[^,:.;]{0,25}:",
        "write a subject and a verb",
        "Left alone: the files of the old version.",
    ),
    _rule(
        "it is … that",
        r"\bit is (?!(?:for|a) )(?:the |an? )?[\w-]+(?: [\w-]+)? (?:who|that|which)\b",
        "begin with the subject that acts",
        "It is the replica that reads the pointer.",
    ),
    _rule(
        "what … is",
        r"^what (?:is|was|are|were|has|have|does|do|did)\b(?=.*[ …]\S*\.$)(?=.* (?:is|are|was|were|has|have|does) )",
        "name the thing and say who acts on it",
        "What is wrong is named.",
    ),
    _rule("without one", r"^without (?:one|that one|any)\b", "name the thing that is missing", "Without one everybody is let in."),
    _rule("none", r"\bthat (?:is|are) (?:none|no)\b", "say `not a` or `without`", "A file that is none is skipped."),
    _rule(
        "of old",
        r"\bof (?:old|ours|theirs|its own making)\b",
        "name the thing: `legacy layout`, `of this project`",
        "The keys of ours.",
    ),
    _rule(
        "belittling",
        r"\b(?:simply|just|easy|easily|obvious|obviously|of course|clearly|basically|actually|trivial|trivially|merely)\b",
        "leave the word out; the reader decides what is easy",
        "You simply add a key.",
    ),
    _rule("please", r"\bplease\b", "leave the word out", "Please restart the server."),
    _rule(
        "Latin",
        r"\b(?:e\.g\.|i\.e\.|etc\.|cf\.|resp\.|viz\.)",
        "write `for example`, `that is`, `and others`",
        "Set a port, e.g. 8000.",
    ),
    _rule("we", r"\b(?:we|us|our|ours|let's|let us)\b", "write `you`, or name the component", "We load the model aside."),
    _rule(
        "note that",
        r"\b(?:(?:please )?note that|it should be noted|keep in mind that|as you know|needless to say)\b",
        "say the thing itself",
        "Note that the store is read-only.",
    ),
    _rule(
        "long-winded",
        r"\b(?:in order to|utili[sz]\w+|leverag\w+|due to the fact|a lot of)\b",
        "use the short word",
        "In order to start, run make.",
    ),
    _rule("exclamation mark", r"\w!(?:\s|$)", "end the sentence with a period", "The model is served!"),
    _rule(
        "glossary: legacy layout",
        r"\b(?:(?:system|files?|store|format) of the old|old(?:er)? layout|metadata dict\w*)\b",
        "say `legacy layout`, `manifest`",
        "The old layout has three files.",
    ),
    _rule("glossary: user", r"\b(?:strangers?|hiccup\w*)\b", "say `newcomer`, `user`, `fails once`", "A stranger reads the page."),
    _rule("repeated word", r"\b([a-z]{2,}) \1\b", "write the word once", "It names the the store.", case_matters=True),
)
"""The table of words and patterns."""


def findings(lines: Iterable[str]) -> list[Finding]:
    """The sentences and cells of a Markdown text that break a rule."""
    return [finding for block in blocks(lines) for finding in _findings_of(block)]


def findings_of_message(text: str) -> list[Finding]:
    """The sentences of one message that break a rule. Line breaks within it do not matter."""
    return _findings_of(Block(1, plain(re.sub(r"\s+", " ", text).strip())))


def blocks(lines: Iterable[str]) -> Iterator[Block]:
    """The blocks of a Markdown text that a person reads; code blocks, comments and directives are left out."""
    start = 0
    parts: list[str] = []
    fence = ""
    in_comment = False
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        opens = re.match(r"(```+|~~~+)", stripped)
        if fence:
            fence = "" if stripped.startswith(fence) else fence
            continue
        in_comment = in_comment or stripped.startswith("<!--")
        ends = bool(opens) or in_comment or not stripped or stripped.startswith((":::", "<", ":sorted:"))
        if (ends or re.match(r"(#+|[-*+]|\d+\.) |\||>", stripped)) and parts:
            yield Block(start, plain(" ".join(parts)))
            parts = []
        if opens:
            fence = opens[1]
        elif in_comment:
            in_comment = "-->" not in stripped
        elif stripped.startswith("|"):
            yield from (Block(number, plain(cell), is_cell=True) for cell in _cells(stripped))
        elif not ends:
            start = start if parts else number
            parts.append(re.sub(r"^(#+|[-*+]|\d+\.|>) ", "", stripped))
            if stripped.startswith("#"):
                yield Block(start, plain(parts.pop()))
    if parts:
        yield Block(start, plain(" ".join(parts)))


def plain(text: str) -> str:
    """The text of Markdown without links, emphasis and code; a piece of code is one word."""
    text = re.sub(r"(`+)(?:(?!\1).)+\1", "`…`", text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\*\*|__|<[^>]+>", "", text)
    return text.replace("\\|", "|").strip()


def sentences(text: str) -> list[str]:
    """The sentences of a block."""
    return [part for part in re.split(r"(?<=[.!?])[)\"”]? +(?=[A-Z`\"“(\d])", text) if part]


def messages(source: str, callables: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The texts with three or more words that Python code passes to these functions or classes, with their lines.

    A value in an f-string becomes `…`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _name_of(node.func) in callables:
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                text = _text_of(argument)
                if len(text.split()) > 2:  # a code or the name of a field is shorter
                    yield argument.lineno, text


def _findings_of(block: Block) -> list[Finding]:
    found = []
    if block.is_cell and len(block.text) > CHARACTERS_OF_A_CELL:
        advice = f"{len(block.text)} characters; move the text below the table"
        found.append(Finding(block.line, "long cell", advice, block.text))
    for sentence in sentences(block.text):
        words = len(sentence.split())
        if words > WORDS_OF_A_SENTENCE:
            found.append(Finding(block.line, "long sentence", f"{words} words; write two sentences", sentence))
        found += [Finding(block.line, rule.name, rule.advice, sentence) for rule in RULES if rule.pattern.search(sentence)]
    return found


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))]


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _text_of(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text_of(value) or "…" for value in values)
        case ast.BinOp(left=left, right=right):
            return _text_of(left) + _text_of(right)
        case _:
            return ""
