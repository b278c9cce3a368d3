"""The strength of an API key. A key that is too short, a placeholder or a simple pattern can be guessed."""

from __future__ import annotations

import itertools
import math

MIN_LENGTH = 32
MIN_BITS = 60.0
"""Least bits of a key by `estimated_bits`; 32 random hexadecimal digits have about 115."""

_PLACEHOLDERS = ("replaceme", "changeme", "opensslrand", "yourkey", "yourapikey", "placeholder", "mustbeatleast32")
_ROWS = (
    *("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "yxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn"),
    *("1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p", "!@#$%^&*()"),
)
_NEIGHBOURS = frozenset(pair for row in _ROWS for text in (row, row[::-1]) for pair in itertools.pairwise(text))


def weakness(key: str) -> str | None:
    """Why the key is too weak for production, as the end of a sentence that begins with "the key"; None for a strong key."""
    if len(key) < MIN_LENGTH:
        return f"has fewer than {MIN_LENGTH} characters"
    letters = "".join(char for char in key.lower() if char.isalnum())
    if any(placeholder in letters for placeholder in _PLACEHOLDERS):
        return "is a placeholder"
    if estimated_bits(key) < MIN_BITS:
        return "is a pattern that can be guessed"
    return None


def estimated_bits(key: str) -> float:
    """The number of symbols that cannot be predicted, times the bits of one symbol of the key's alphabet.

    A symbol can be predicted when it continues a run (`aaa`, `abc`, `321`), a row of a keyboard, or a piece of three or more
    symbols that occurs earlier in the key, forwards or backwards. Case is ignored. Two interleaved patterns (`a1b2c3`) are also
    read one after the other.
    """
    text = key.lower()
    return min(_bits(text), _bits(text[::2] + text[1::2]))


def _bits(text: str) -> float:
    free, at = 0, 0
    while at < len(text):
        piece = max(_run(text, at), _repeat(text, at))
        free += 1
        at += max(piece, 1)
    return free * math.log2(max(len(set(text)), 1))


def _run(text: str, at: int) -> int:
    """The length of the run or the keyboard row that begins at `at`; 1 for fewer than three symbols."""
    row = end = at + 1
    step = ord(text[end]) - ord(text[at]) if end < len(text) else 2
    while abs(step) <= 1 and end < len(text) and ord(text[end]) - ord(text[end - 1]) == step:
        end += 1
    while row < len(text) and (text[row - 1], text[row]) in _NEIGHBOURS:
        row += 1
    length = max(end, row) - at
    return length if length >= 3 else 1


def _repeat(text: str, at: int) -> int:
    """The length of the longest piece from `at` that also occurs before `at`; 1 for fewer than three symbols."""
    before = (text[:at], text[:at][::-1])
    length = 3
    while at + length <= len(text) and any(text[at : at + length] in part for part in before):
        length += 1
    return length - 1 if length > 3 else 1
