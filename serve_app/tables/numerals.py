"""Texts that represent numbers: plain numbers, numbers with thousands separators or a sign, and digits that are names.

`decimal` is the decimal mark of the table, '.' or ','.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from serve_app.artifacts.signature import EXACT

_EXACT_DIGITS = len(str(EXACT))
_MAX_SIGNED = 64
"""Maximum number of characters in a number with separators and signs; the pattern is slow on longer texts."""

CODE = r"^(?:0[0-9]+|\+[0-9]{7,})\s*$"
"""Digits that are a name, not a number: with a leading zero (zip codes, 007), or in a telephone number."""
DIGITS = r"^\+?[0-9]+\s*$"
LONG = r"^[+-]?[0-9]{16,}\s*$"
"""Whole numbers that may be beyond EXACT."""

_CURRENCIES = r"[$€£¥₹₽₩₺₫฿₴¢]|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|BRL|SEK|NOK|DKK|PLN|CZK)\b|kr\.?|zł|R\$"
_SIGNED = re.compile(
    rf"(?P<minus>[-\u2212]?)\s*(?P<before>{_CURRENCIES})?\s*(?P<sign>[+\-\u2212]?)(?P<core>[0-9.,].*?)\s*(?P<after>%|{_CURRENCIES})?"
)
PLAIN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""A number with a decimal point, without separators or a sign of a unit."""
_GROUPS = {
    mark: re.compile(
        rf"[1-9][0-9]{{0,2}}(?P<gap>[{other}'\u2019 \u00a0\u202f\u2009])(?:[0-9]{{2,3}}(?P=gap))*[0-9]{{3}}(?:[{mark}][0-9]*)?"
    )
    for mark, other in ((".", ","), (",", "."))
}


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number in a table: its value, the sign beside it ('%', '$', or empty), and whether it is plain."""

    value: float
    sign: str = ""
    plain: bool = True


@lru_cache(maxsize=100_000)
def numeral(text: str, decimal: str = ".") -> Numeral | None:
    """The number that a text represents; None for a text that is not a number. `45%` is 45, and `(45)` is -45."""
    text = text.strip()
    plain = plain_number(text, decimal)
    if plain is not None:
        return Numeral(plain)
    if len(text) > _MAX_SIGNED:
        return None
    if text.startswith("(") and text.endswith(")"):
        inner = numeral(text[1:-1], decimal)
        return None if inner is None or text[1] in "+-(" else Numeral(-inner.value, inner.sign, plain=False)
    match = _SIGNED.fullmatch(text)
    if match is None or (match["before"] and match["after"]) or (match["minus"] and match["sign"]):
        return None
    core = match["core"]
    value = plain_number(core, decimal) if re.fullmatch(r"[0-9.,]+", core) else None
    if value is None and _GROUPS[decimal].fullmatch(core):
        value = float("".join(mark for mark in core.replace(decimal, "_") if mark.isdigit() or mark == "_").replace("_", "."))
    if value is None:
        return None
    negative = match["minus"] or match["sign"] in ("-", "\u2212")
    return Numeral(-value if negative else value, match["before"] or match["after"] or "", plain=False)


def plain_number(text: str, decimal: str = ".") -> float | None:
    """The value of a finite number without separators and units, like `1.5`, `.5`, `+5` or `1e3`; None for other texts."""
    if decimal == ",":
        text = text.replace(".", "_").replace(",", ".")
    if not PLAIN.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def is_code(text: str) -> bool:
    """Whether digits are a name: with a leading zero, or in a telephone number."""
    return re.fullmatch(CODE, text) is not None


def is_inexact(text: str) -> bool:
    """Whether digits are a whole number beyond 2^53."""
    digits = text.strip().lstrip("+-").lstrip("0")
    return digits.isdecimal() and digits.isascii() and (len(digits) > _EXACT_DIGITS or int(digits) > EXACT)
