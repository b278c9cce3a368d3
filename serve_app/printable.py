"""Makes the text of a user safe to print: a terminal or a log shows control characters and does not act on them."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 with ESC and line breaks, DEL, C1 with the one-byte CSI
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, and marks for the direction of writing
    "\ud800-\udfff]"  # the bytes of a file name that is not UTF-8
)


def printable(text: str) -> str:
    r"""The text with an escape for every control character: ESC becomes `\x1b`, a line break becomes `\n`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)
