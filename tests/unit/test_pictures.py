"""The pictures of the documentation."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LABEL = re.compile(r'label="([^"]*)"|<td[^>]*>(?:<b>)?([^<]*)')
MOST_BYTES = 250_000


@pytest.mark.parametrize("source", sorted(IMAGES.glob("*.dot")), ids=lambda path: path.stem)
def test_a_picture_shows_the_labels_of_its_text(source: Path) -> None:
    svg = ET.parse(source.with_suffix(".svg"))
    shown = {"".join(element.itertext()).strip() for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    labels = {line.strip() for found in LABEL.findall(source.read_text()) for line in "".join(found).split("\\n")}
    assert labels - {""} == shown, "run make pictures"


@pytest.mark.parametrize(
    "picture", sorted(path for path in IMAGES.iterdir() if path.suffix in (".png", ".svg")), ids=lambda path: path.name
)
def test_a_picture_is_small_and_a_page_shows_it_with_a_text(picture: Path) -> None:
    assert picture.stat().st_size < MOST_BYTES
    pages = "".join(path.read_text() for path in IMAGES.parent.rglob("*.md"))
    assert re.search(rf"!\[[^]]+\]\([^)]*{re.escape(picture.name)}\)", pages)
