"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from tests.support.manifest_fields import MEANINGS, keys_of
from tests.support.reference import FOLDER, PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_made_from_the_code_is_the_one_in_the_folder(page: str) -> None:
    assert (FOLDER / page).read_text() == PAGES[page](), "run make docs-reference"


@pytest.mark.parametrize("kind", MEANINGS, ids=lambda kind: kind.__name__)
def test_the_page_of_the_manifest_explains_the_keys_of_the_code_and_no_others(kind: type) -> None:
    assert list(MEANINGS[kind]) == [key.name for key in keys_of(kind)]
