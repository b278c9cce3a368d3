"""Keys that production takes, and those that it refuses."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from serve_app.http.key_strength import weakness

EXAMPLE = Path(__file__).parents[3] / "kuberay/base/secret.yaml.example"


@pytest.mark.parametrize(
    "key",
    [
        "k" * 32,
        "ab" * 16,
        "aB3$" * 8,
        "password" * 4,
        "0123456789abcdef" * 2,
        "abcdefghijklmnopqrstuvwxyz012345",
        "a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6",
        "qwertyuiopasdfghjklzxcvbnm123456",
        "zxcvbnmlkjhgfdsapoiuytrewq0987654321",
        "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9",
        "AAAAAAAABBBBBBBBCCCCCCCCDDDDDDDD",
        "change-me-change-me-change-me-123",
        "x" + yaml.safe_load(EXAMPLE.read_text())["stringData"]["API_KEY"],
        yaml.safe_load(EXAMPLE.read_text())["stringData"]["API_KEY"],
    ],
)
def test_a_key_that_can_be_guessed_is_refused(key: str) -> None:
    assert weakness(key) is not None


@pytest.mark.parametrize(("digits", "length"), [("0123456789abcdef", 32), ("0123456789abcdef", 64)])
def test_random_keys_are_accepted(digits: str, length: int) -> None:
    source = random.Random(7)
    keys = ["".join(source.choice(digits) for _ in range(length)) for _ in range(3000)]
    assert [key for key in keys if weakness(key) is not None] == []
