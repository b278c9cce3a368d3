"""Text of a user, made safe to print: a terminal or a log shows what stands in it and obeys nothing of it."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with ESC and line breaks, DEL, C1 with the one-byte CSI
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, and what turns the direction of writing
    "\ud800-\udfff]"  # the bytes of a file name that is not UTF-8
)


def printable(text: str) -> str:
    r"""The text with every control character as an escape: ESC becomes `\x1b`, a line break `\n`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)
