"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from tests.support.reference import FOLDER, PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_made_from_the_code_is_the_one_in_the_folder(page: str) -> None:
    assert (FOLDER / page).read_text() == PAGES[page](), "run make docs-reference"
