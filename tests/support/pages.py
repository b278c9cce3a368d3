"""The commands of a page of the documentation, and the output that the page shows for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

_BEFORE = re.compile(r"<!-- before: (.*?) -->\n\Z")
_FENCE = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMANDS = ("bash", "sh")


class Block(NamedTuple):
    """Commands, what the comment `<!-- before: … -->` above them runs first, and the output that the page shows next."""

    language: str
    before: str
    commands: str
    shown: str


def blocks_of(page: Path, *languages: str) -> Iterator[Block]:
    """Yield the blocks of a page in their order: those marked `bash`, which tests execute, or those of `languages`."""
    text = page.read_text()
    fences = list(_FENCE.finditer(text))
    for fence, following in zip_longest(fences, fences[1:]):
        if fence[1] in (languages or ("bash",)):
            before = _BEFORE.search(text, 0, fence.start())
            shown = following[2] if following is not None and following[1] not in _COMMANDS else ""
            yield Block(fence[1], before[1] if before else "", fence[2], shown)
