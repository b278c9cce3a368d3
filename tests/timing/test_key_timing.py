"""The time of a refusal tells nothing about a key."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

from serve_app.http.auth import Keys, make_key
from tests.support.figures import note

SAMPLES = 5_000
ROUNDS = 8
CHANCE = 1e-3
"""So seldom do equal timings look this different by chance; in all rounds, never."""
Ask = Callable[[bytes], object]


def guesses(secret: bytes, dice: random.Random) -> tuple[list[bytes], list[bytes]]:
    """Keys that are right but for their last bytes, and keys with nothing right: made alike, and so many that it does not matter
    where the hash of a single one falls."""
    ends = [end for end in (dice.randbytes(2) for _ in range(2000)) if end != secret[-2:]]
    return [secret[:-2] + end for end in ends], [dice.randbytes(len(secret) - 2) + end for end in ends]


def looks_different(ask: Ask, near: list[bytes], far: list[bytes], dice: random.Random) -> bool:
    """Whether the time of `ask` tells near guesses from far ones: asked in turns of random order, compared by rank."""
    times: tuple[list[int], list[int]] = ([], [])
    gc.disable()
    try:
        for _ in range(SAMPLES):
            first = dice.randrange(2)
            for kind in (first, 1 - first):
                key = dice.choice((near, far)[kind])
                started = time.perf_counter_ns()
                ask(key)
                times[kind].append(time.perf_counter_ns() - started)
    finally:
        gc.enable()
    return bool(mannwhitneyu(*times).pvalue < CHANCE)


def tells(ask: Ask, secret: bytes) -> bool:
    """Whether it does so in every one of several rounds; a busy machine spoils some, never all the same way."""
    dice = random.Random(2026)
    return all(looks_different(ask, *guesses(secret, dice), dice) for _ in range(ROUNDS))


def stops_early(secret: bytes) -> Ask:
    return lambda key: all(a == b for a, b in zip(key, secret, strict=True))


def compares_all_at_once(secret: bytes) -> Ask:
    return lambda key: key == secret


def looks_twice(secret: bytes) -> Ask:
    """A hash is good, a second one for keys that begin right is not."""

    def ask(key: bytes) -> object:
        digest = hashlib.sha256(key).digest()
        return hashlib.sha256(digest) if key.startswith(secret[:6]) else digest

    return ask


@pytest.mark.parametrize(
    ("leak", "length"),
    [(stops_early, 48), (looks_twice, 48), (compares_all_at_once, 100_000)],
    ids=lambda it: getattr(it, "__name__", it),
)
def test_the_measure_of_time_sees_a_leak(leak: Callable[[bytes], Ask], length: int) -> None:
    secret = random.Random(1).randbytes(length)
    assert tells(leak(secret), secret)


def test_the_time_of_a_refusal_does_not_tell_how_wrong_a_key_is(tmp_path: Path) -> None:
    secret = make_key("alice")[0].encode()
    file = tmp_path / "keys.json"
    entries = [
        {"name": "alice", "sha256": hashlib.sha256(secret).hexdigest()},
        {"name": "bob", "sha256": hashlib.sha256(b"expired").hexdigest(), "not_after": "2020-01-01"},
    ]
    file.write_text(json.dumps(entries))
    keys = Keys(None, file)
    assert keys.check(secret, None) != "wrong"
    assert not tells(lambda key: keys.check(key, None), secret)
    note(f"{ROUNDS} rounds of {SAMPLES} guesses that are nearly right and as many that are not: no difference")
