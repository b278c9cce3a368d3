"""What other servers of tables were found to do wrong, one test each, in every format that a client sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from serve_app.artifacts.signature import Feature, Signature
from serve_app.protocols.arrow_tables import arrow_decoder, parquet_decoder
from serve_app.protocols.csv_rows import csv_decoder
from serve_app.protocols.json_tables import table_decoder
from serve_app.protocols.ndjson_rows import LineDecoder
from serve_app.protocols.table_answers import predictions_encoder
from tests.support.apps import HEADERS, client_of
from tests.support.arrow_bodies import file, stream
from tests.support.models import A_FLOWER, iris, logistic_store
from tests.support.table_rows import context

NAMES = list(A_FLOWER)
SECRET = 918273.645
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(logistic_store(tmp_path_factory.mktemp("store"))) as client:
        yield client


def bodies(rows: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """These rows in every format, with the content type of each."""
    names = list(rows[0])
    table = pa.Table.from_pylist(rows)
    cells = [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    return [
        ("application/json", json.dumps({"dataframe_records": rows}).encode()),
        ("text/csv", "".join(",".join(line) + "\n" for line in [names, *cells]).encode()),
        ("application/x-ndjson", "".join(json.dumps(row) + "\n" for row in rows).encode()),
        (ARROW, stream(table)),
        (PARQUET, file(table)),
    ]


def matrices(signature: Signature, rows: list[dict[str, Any]]) -> list[Any]:
    """The matrix of these rows as each decoder of /invocations reads them."""
    known = context(signature)
    csv = csv_decoder(known, without_header=True)
    decoders = [
        table_decoder(known),
        lambda body: csv(body, None),
        LineDecoder(known, lists=True).decode,
        arrow_decoder(known),
        parquet_decoder(known),
    ]
    return [decode(body) for decode, (_, body) in zip(decoders, bodies(rows), strict=True)]


def invoke(client: TestClient, body: bytes, media_type: str = "application/json", path: str = "/invocations") -> Any:
    return client.post(path, content=body, headers={**HEADERS, "Content-Type": media_type})


def test_a_column_of_whole_numbers_may_have_gaps() -> None:
    signature = Signature((Feature("a", nullable=True), Feature("b")), "regression")
    for matrix in matrices(signature, [{"a": 1, "b": 1}, {"a": None, "b": 2}, {"a": 3, "b": 3}]):
        assert repr(matrix.tolist()) == "[[1.0, 1.0], [nan, 2.0], [3.0, 3.0]]"


def test_a_category_keeps_its_leading_zeros() -> None:
    signature = Signature((Feature("zip", "category", categories=("007", "7")),), "regression")
    for matrix in matrices(signature, [{"zip": "007"}, {"zip": "7"}]):
        assert matrix.tolist() == [[0.0], [1.0]]


def test_a_type_does_not_depend_on_the_first_rows() -> None:
    signature = Signature((Feature("a"), Feature("t", "text")), "regression")
    for matrix in matrices(signature, [{"a": 1, "t": "1"}, {"a": 2.5, "t": "x"}]):
        assert matrix.tolist() == [[1.0, "1"], [2.5, "x"]]


def test_columns_are_placed_by_name_whatever_their_order(client: TestClient) -> None:
    rows = [dict(zip(NAMES, row, strict=True)) for row in iris()[0][::30].tolist()]
    shuffled = [{name: row[name] for name in (NAMES[2], NAMES[0], NAMES[3], NAMES[1])} for row in rows]
    for (media_type, straight), (_, other) in zip(bodies(rows), bodies(shuffled), strict=True):
        assert invoke(client, other, media_type).json() == invoke(client, straight, media_type).json()


def test_values_without_names_are_read_only_when_they_are_as_many_as_the_features(client: TestClient) -> None:
    assert invoke(client, b'{"instances":[[5.1,3.5,1.4,0.2]]}').json()["predictions"] == ["setosa"]
    for row in (b"[5.1,3.5,1.4]", b"[5.1,3.5,1.4,0.2,1]", b"[]"):
        assert invoke(client, b'{"instances":[' + row + b"]}").status_code == 400
    assert invoke(client, b"5.1,3.5,1.4\n", "text/csv").status_code == 400


def test_a_single_row_without_its_brackets_is_refused_with_a_hint(client: TestClient) -> None:
    answer = invoke(client, b'{"instances":[5.1,3.5,1.4,0.2]}')
    assert answer.status_code == 400
    assert "[[…]] for one row" in answer.json()["message"]


def test_columns_of_one_value_a_row_are_columns(client: TestClient) -> None:
    flat = {"inputs": {name: [value, value] for name, value in A_FLOWER.items()}}
    nested = {"inputs": {name: [[value], [value]] for name, value in A_FLOWER.items()}}
    assert invoke(client, json.dumps(nested).encode()).json() == invoke(client, json.dumps(flat).encode()).json()
    deeper = {"inputs": {name: [[[value]], [[value]]] for name, value in A_FLOWER.items()}}
    assert invoke(client, json.dumps(deeper).encode()).status_code == 400


def test_labels_are_answered_in_their_own_type() -> None:
    for classes, texts in (((False, True), "false,true"), ((0, 7), "0,7"), (("no", "7"), '"no","7"')):
        signature = Signature((Feature("x"),), "classification", classes)
        text = predictions_encoder(signature)(np.array([[0.75, 0.25], [0.25, 0.75]]))
        assert text == b'{"predictions":[%b],"probabilities":[[0.75,0.25],[0.25,0.75]],"classes":[%b]}' % ((texts.encode(),) * 2)


@pytest.mark.parametrize("path", ["/invocations", "/v1/models/IrisClassifier:predict", "/predict/batch"])
@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "APPLICATION/JSON;Charset=UTF-8", "application/json;a=b"]
)
def test_parameters_of_a_content_type_do_not_matter(client: TestClient, path: str, media_type: str) -> None:
    assert invoke(client, json.dumps({"instances": [A_FLOWER]}).encode(), media_type, path).status_code == 200


def test_a_body_without_a_content_type_is_json(client: TestClient) -> None:
    body = json.dumps({"instances": [A_FLOWER]}).encode()
    assert client.post("/invocations", content=body, headers=HEADERS).status_code == 200


def test_no_error_holds_a_value_of_the_client_in_any_format(client: TestClient) -> None:
    rows = [{**A_FLOWER, "petal_width": SECRET}]
    texts = [{**A_FLOWER, "petal_width": f"secret {SECRET}"}]
    for media_type, body in [*bodies(rows), *bodies(texts)]:
        for path in ("/invocations", "/predict/batch"):
            sent = body.replace(b"dataframe_records", b"instances") if path == "/predict/batch" else body
            answer = invoke(client, sent, media_type, path)
            assert answer.status_code in (400, 422), (media_type, path)
            assert "petal_width" in answer.text
            assert "918273" not in answer.text
            assert "secret" not in answer.text


def test_every_error_of_a_path_has_the_form_of_its_protocol(client: TestClient) -> None:
    forms = {"/invocations": {"error_code", "message"}, "/v1/models/IrisClassifier:predict": {"error"}}
    for path, members in forms.items():
        answers = [
            client.post(path, content=b"{}"),
            client.post(path, content=b"{}", headers={"X-API-Key": "wrong"}),
            client.get(path, headers=HEADERS),
            invoke(client, b"{", path=path),
            invoke(client, b"x", "text/html", path),
            invoke(client, b"[" * 100_000, path=path),
            client.post(path, content=b"{}", headers={**HEADERS, "Content-Encoding": "br"}),
        ]
        assert [answer.status_code for answer in answers] == [401, 403, 405, 400, 415, 400, 415]
        for answer in answers:
            assert answer.headers["content-type"] == "application/json"
            assert set(answer.json()) == members
