"""One contract for all protocols and formats: the same rows have the same answers, and wrong rows the same refusals.

The protocols are the entries of `tests.support.protocol_table`; what they say is compared with the native batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from grpc import StatusCode
from starlette.testclient import TestClient

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.store import Store
from serve_app.grpc.calls import Calls
from tests.support.apps import HEADERS, KEY, client_of, http_options
from tests.support.contract_models import WRONG, Case, as_float32, mixed, numbers, publish_case, without_gaps_in_texts
from tests.support.protocol_table import (
    MODEL_INFER,
    PROTOCOLS,
    REFERENCE,
    VERTEX_ROUTE,
    Answer,
    CannotCarry,
    Protocol,
    Refused,
    Row,
    headers_of,
)

CASES = {"mixed": mixed(), "mixed, no text missing": without_gaps_in_texts(), "numbers": numbers()}
"""The bytes of a text cannot say that it is missing; protocols without another way are compared with the second case."""
PLACES = (0, 3, 9)
"""Where a wrong row stands among ten."""

ROUNDED = ("just below the bound", "just above the bound", "beyond float32")
"""What float32 cannot say: the value is rounded, and so is the bound."""


def carries(protocol: Protocol, case: Case) -> bool:
    """Whether a protocol can say the rows of a case; a tensor of numbers has no texts."""
    with contextlib.suppress(CannotCarry):
        return bool(protocol.encode(case.signature, case.rows[:1] if protocol.single else case.rows))
    return False


def cases_of(protocol: Protocol) -> list[str]:
    """The names of the cases that a protocol is compared with."""
    names = [name for name, case in CASES.items() if carries(protocol, case)]
    return [name for name in names if name != "mixed, no text missing" or "mixed" not in names]


every_protocol = pytest.mark.parametrize(
    ("name", "protocol"),
    [(name, protocol) for protocol in PROTOCOLS for name in cases_of(protocol)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)


class Reply(NamedTuple):
    """The end of a call over gRPC, named as the parts of a response."""

    status_code: int | str
    headers: dict[str, str]
    content: bytes


class Server(NamedTuple):
    """An application that serves the model of a case, and what its native batch answers, by the precision of the numbers sent."""

    case: Case
    client: TestClient
    calls: Calls
    expected: dict[Any, Answer]

    def post(self, protocol: Protocol, rows: Sequence[Row]) -> Any:
        """The response to a request with these rows. Raises CannotCarry."""
        sent = protocol.encode(self.case.signature, rows)
        if protocol.path == MODEL_INFER:
            return self.call(sent.body)
        return self.client.post(protocol.path, content=sent.body, headers={**HEADERS, **headers_of(protocol, sent)})

    def call(self, message: bytes) -> Reply:
        """The end of a call over gRPC as a response: the message, or the details of the status."""

        async def read() -> bytes:
            return message

        portal = self.client.portal
        assert portal is not None
        answer = portal.call(self.calls.answer, MODEL_INFER, [("x-api-key", KEY)], "ipv4:203.0.113.7:4711", read)
        if answer.code is StatusCode.OK:
            return Reply(200, dict(answer.metadata), answer.message)
        return Reply(answer.code.name, dict(answer.metadata), answer.details.encode())

    def answer(self, protocol: Protocol, rows: Sequence[Row]) -> Answer:
        """What a protocol answers to these rows; one by one when a request of it holds one row."""
        answers = []
        for part in [[row] for row in rows] if protocol.single else [rows]:
            reply = self.post(protocol, part)
            assert reply.status_code == 200, reply.content[:2000]
            assert reply.headers["x-model-version"] == "1"
            answers.append(protocol.decode(reply.content, reply.headers))
        shares = [row for each in answers for row in each.probabilities or ()]
        return Answer([label for each in answers for label in each.predictions], shares or None)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, case in CASES.items():
            store = Store(tmp_path_factory.mktemp(name))
            publish_case(store, case)
            client = stack.enter_context(client_of(store, predict_route=VERTEX_ROUTE))
            app: Any = client.app
            options = http_options(api_key=KEY)
            servers[name] = server = Server(case, client, Calls(app.state.gateway, app.state.service, options), {})
            server.expected[np.float64] = server.answer(REFERENCE, case.rows)
            server.expected[np.float32] = server.answer(REFERENCE, list(map(as_float32, case.rows)))
        yield servers


@pytest.mark.parametrize("name", CASES)
def test_the_native_answers_are_those_of_the_estimator(servers: dict[str, Server], name: str) -> None:
    (signature, model, rows), found = CASES[name], servers[name].expected[np.float64]
    X = read_rows(signature, rows)
    assert found.predictions == model.predict(X).tolist()
    assert len(set(found.predictions)) >= 3
    if signature.classes:
        assert found.probabilities == model.predict_proba(X).tolist()


@every_protocol
def test_a_thousand_rows_have_the_same_answers_to_the_last_bit(servers: dict[str, Server], name: str, protocol: Protocol) -> None:
    server = servers[name]
    assert len(server.case.rows) == 1000
    assert server.answer(protocol, server.case.rows) == server.expected[protocol.precision]


@every_protocol
def test_a_few_rows_have_the_answers_that_they_have_among_a_thousand(
    servers: dict[str, Server], name: str, protocol: Protocol
) -> None:
    server = servers[name]
    among = server.expected[protocol.precision]
    for count in (1, 2, 17):
        found = server.answer(protocol, server.case.rows[:count])
        assert found.predictions == among.predictions[:count]
        assert found.probabilities == (None if among.probabilities is None else among.probabilities[:count])


@every_protocol
def test_a_wrong_row_has_the_same_refusal(servers: dict[str, Server], name: str, protocol: Protocol) -> None:
    server, seen = servers[name], set()
    for wrong, (all_changes, code) in WRONG.items():
        changes = {column: value for column, value in all_changes.items() if column in server.case.signature.names}
        if protocol.precision != np.float64 and wrong in ROUNDED:
            changes = {}
        for place in (0,) if protocol.single else PLACES:
            rows = [dict(row) for row in server.case.rows[: 1 if protocol.single else 10]]
            rows[place].update(changes)
            with contextlib.suppress(CannotCarry):
                if changes:
                    assert_same_refusal(server, protocol, rows, {(place, column) for column in changes}, code)
                    seen.add(wrong)
    assert {"too small", "several"} <= seen


def assert_same_refusal(server: Server, protocol: Protocol, rows: Sequence[Row], places: set[tuple[int, str]], code: str) -> None:
    reply, reference = server.post(protocol, rows), server.post(REFERENCE, rows)
    wanted = REFERENCE.refusals(reference.content)
    assert {(each.row, each.field) for each in wanted} == places
    assert not code or {each.code for each in wanted} == {code}
    assert (reference.status_code, reply.status_code) == (422, protocol.status), reply.content[:2000]
    if not protocol.codes:
        wanted = [Refused(each.row, each.field) for each in wanted]
    found = sorted(protocol.refusals(reply.content))
    if protocol.streams:  # rows are refused as they arrive: by the first piece of the body that holds a wrong one
        assert found == sorted(wanted)[: len(found)] != []
    else:
        assert found == sorted(wanted)


@every_protocol
def test_every_wrong_row_of_many_is_named(servers: dict[str, Server], name: str, protocol: Protocol) -> None:
    if protocol.single:
        return
    rows = [dict(row) for row in CASES[name].rows]
    for place in (5, 500, 998):
        rows[place]["share"] = 7.0
    rows[500]["age"] = -1.0
    wanted = {(5, "share"), (500, "age"), (500, "share"), (998, "share")}
    assert_same_refusal(servers[name], protocol, rows, wanted, "out_of_range")
