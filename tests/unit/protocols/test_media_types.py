"""`Content-Type` and `Accept`: which format a body has, and which one its answer."""

from __future__ import annotations

import pytest

from serve_app.protocols.media_types import ANSWER_TYPES, MediaType, answer_format, format_of


@pytest.mark.parametrize(
    ("content_type", "media_type"),
    [
        (b"application/json", MediaType("json")),
        (b"Application/JSON; Charset=UTF-8", MediaType("json")),
        (b"application/json; format=pandas-split", MediaType("json")),
        (b"application/vnd.api+json", MediaType("json")),
        (b"text/csv", MediaType("csv")),
        (b'TEXT/CSV;charset="utf-8" ; header=absent', MediaType("csv", False)),
        (b"text/csv; header=present", MediaType("csv", True)),
        (b"text/csv; charset=iso-8859-1", None),
        (b"application/x-ndjson", MediaType("ndjson")),
        (b"application/jsonlines", MediaType("ndjson")),
        (b"application/jsonl;charset=utf8", MediaType("ndjson")),
        (b"application/ndjson; charset=utf-16", None),
        (b"application/vnd.apache.arrow.stream", MediaType("arrow")),
        (b"Application/VND.apache.Parquet", MediaType("parquet")),
        (b"application/vnd.apache.arrow.file", None),
        (b"text/plain", None),
        (b"application/x-www-form-urlencoded", None),
        (b"", None),
        (b";;=", None),
        (b"\xff", None),
    ],
)
def test_a_content_type_names_a_format(content_type: bytes, media_type: MediaType | None) -> None:
    assert format_of(content_type) == media_type


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (b"", "json"),
        (b"*/*", "json"),
        (b"application/*", "json"),
        (b"application/json", "json"),
        (b"text/csv", "csv"),
        (b"text/*", "csv"),
        (b"TEXT/CSV ; q=0.5", "csv"),
        (b"application/x-ndjson", "ndjson"),
        (b"application/jsonlines", "ndjson"),
        (b"application/vnd.apache.arrow.stream", "arrow"),
        (b"application/vnd.apache.arrow.stream, */*;q=0.1", "arrow"),
        (b"application/vnd.apache.parquet", None),
        (b"text/csv, */*;q=0.8", "csv"),
        (b"text/csv;q=0.5, application/json", "json"),
        (b"text/csv, application/json", "csv"),
        (b"application/json;q=0, */*", "csv"),
        (b"*/*, application/json;q=0.1", "csv"),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        (b"text/csv;q=high, application/json;q=0.1", "json"),
        (b"text/html", None),
        (b"image/*", None),
        (b"*/*;q=0", None),
        (b"text/csv;q=0", None),
        (b"\xff/\xff", None),
    ],
)
def test_the_answer_has_the_format_of_the_highest_weight(accept: bytes, form: str | None) -> None:
    assert answer_format(accept) == form


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (b"application/json", "json"),
        (b"application/json; charset=utf-8", "json"),
        (b"application/*", "json"),
        (b"*/*", "json"),
        (b"application/json; orient=columns", "columns"),
        (b'Application/JSON;Orient="columns" ; q=0.3', "columns"),
        (b"application/json;orient=columns, application/json;q=0.9", "columns"),
        (b"application/json, application/json;orient=columns", "json"),
        (b"application/json;orient=columns;q=0.5, */*", "json"),
        (b"application/json;q=0.5, text/csv;q=0.4, application/json;orient=columns;q=0.6", "columns"),
        (b"application/json;orient=columns;q=0, text/csv;q=0.1", "csv"),
        (b"application/json;orient=index", None),
        (b"text/csv;orient=columns", None),
    ],
)
def test_columns_are_answered_when_they_are_named(accept: bytes, form: str | None) -> None:
    assert answer_format(accept, tuple(ANSWER_TYPES)) == form


def test_columns_are_not_acceptable_where_they_are_not_written() -> None:
    assert answer_format(b"application/json;orient=columns") is None
    assert answer_format(b"application/json;orient=columns, text/csv;q=0.1") == "csv"
