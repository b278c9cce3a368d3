"""A text that training read as a missing value is one in CSV, in Parquet and in requests; a text that is a category stays one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import MISSING, Signature
from serve_app.errors import InvalidInput, UsageError
from serve_app.protocols.decode import row_decoder, rows_decoder
from serve_app.tables.columns import Reading, csv_rows, parquet_rows
from serve_app.tables.location import Location, sources
from serve_app.tables.splits import parquet_parts
from tests.support import tables
from tests.support.scoring import split
from training.dataset import load

ROWS = [
    f"{('NA', 'DE', 'FR')[row % 3]},{('None', 'Brick', '.')[row % 7 % 3]},{'-999' if row % 11 == 0 else row},{row * 1.5}"
    for row in range(60)
]


def table(folder: Path) -> Path:
    return tables.lines(folder, "country,masonry,area,price", *ROWS)


@pytest.mark.parametrize(
    ("missing", "categories", "gaps"),
    [
        (None, {"country": ("DE", "FR"), "masonry": (".", "Brick")}, {"country", "masonry"}),
        ([""], {"country": ("DE", "FR", "NA"), "masonry": (".", "Brick", "None")}, set()),
        (["."], {"country": ("DE", "FR", "NA"), "masonry": ("Brick", "None")}, {"masonry"}),
        (["None", "-999"], {"country": ("DE", "FR", "NA"), "masonry": (".", "Brick")}, {"masonry", "area"}),
    ],
    ids=["the usual ones", "the empty cell only", "a dot", "a text and a number"],
)
def test_the_words_of_training_hold_for_csv_parquet_and_requests(
    tmp_path: Path, missing: list[str] | None, categories: dict[str, Any], gaps: set[str]
) -> None:
    path = table(tmp_path)
    signature = load(path, target="price", missing=missing).signature
    assert {item.name: item.categories for item in signature.features if item.categories} == categories
    assert {item.name for item in signature.features if item.nullable} == gaps
    assert signature.missing == (MISSING if missing is None else tuple(dict.fromkeys(["", *missing])))
    reading = Reading(Signature.from_dict(orjson.loads(orjson.dumps(signature.to_dict()))), (), "refuse")

    location, header, (part,) = split(path, 1 << 20)
    (rows,) = csv_rows(location, part, header, reading)
    assert not rows.problems

    texts = pd.read_csv(path, keep_default_na=False)
    texts.to_parquet(tmp_path / "table.parquet")
    location = Location(str(tmp_path / "table.parquet"))
    _, (part,) = parquet_parts(location, sources(location)[1][0], 1 << 20, 0)
    (from_parquet,) = parquet_rows(location, part, reading)
    assert not from_parquet.problems
    np.testing.assert_array_equal(from_parquet.matrix, rows.matrix)

    instances = texts.drop(columns="price").to_dict("records")
    np.testing.assert_array_equal(read_rows(signature, instances), rows.matrix)
    for unknown in ("refuse", "unseen"):
        decode_row, decode_rows = (
            row_decoder(signature, unknown=unknown),
            rows_decoder(signature, max_rows=100, max_row_bytes=10_000, unknown=unknown),
        )
        np.testing.assert_array_equal(decode_rows(orjson.dumps({"instances": instances})), rows.matrix)
        np.testing.assert_array_equal(np.concatenate([decode_row(orjson.dumps(row)) for row in instances]), rows.matrix)


def test_a_word_in_a_column_that_had_no_gap_is_refused_everywhere(tmp_path: Path) -> None:
    signature = load(table(tmp_path), target="price", missing=["."]).signature
    for row in ({"country": ".", "masonry": "Brick", "area": 1}, {"country": "DE", "masonry": "Brick", "area": "."}):
        with pytest.raises(InvalidInput):
            read_rows(signature, [row])
        path = tables.lines(tmp_path, "country,masonry,area", ",".join(str(value) for value in row.values()), name="bad.csv")
        location, header, (part,) = split(path, 1 << 20)
        (rows,) = csv_rows(location, part, header, Reading(signature, (), "refuse"))
        assert list(rows.problems) == [0]


def test_a_manifest_from_before_the_words_reads_the_usual_ones(tmp_path: Path) -> None:
    document = load(table(tmp_path), target="price").signature.to_dict()
    del document["missing"]
    signature = Signature.from_dict(document)
    assert signature.missing_texts == MISSING
    assert signature.to_dict() == document


@pytest.mark.parametrize(("target", "text", "row"), [("country", "NA", 1), ("masonry", "None", 1)])
def test_a_gap_in_the_target_is_named_by_its_text(tmp_path: Path, target: str, text: str, row: int) -> None:
    with pytest.raises(UsageError, match=rf'"{text}" in .*row {row}\b.*--na'):
        load(table(tmp_path), target=target)
    assert text in load(table(tmp_path), target=target, missing=[""]).signature.classes


def test_words_that_became_gaps_are_shown_with_the_flag_that_keeps_them(tmp_path: Path) -> None:
    remarks = " ".join(load(table(tmp_path), target="price").remarks)
    assert "'NA' in 20 rows" in remarks
    assert "'None'" in remarks
    assert "--na ''" in remarks
    assert "--na" not in " ".join(load(table(tmp_path), target="price", missing=["."]).remarks)


def test_texts_of_parquet_are_values_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    pd.read_csv(table(tmp_path), keep_default_na=False).to_parquet(tmp_path / "t.parquet")
    plain = load(tmp_path / "t.parquet", target="price").signature
    assert [item.categories for item in plain.features] == [("DE", "FR", "NA"), (".", "Brick", "None"), ()]
    told = load(tmp_path / "t.parquet", target="price", missing=["None", "-999"]).signature
    assert [(item.categories, item.nullable) for item in told.features] == [
        (("DE", "FR", "NA"), False),
        ((".", "Brick"), True),
        ((), True),
    ]
