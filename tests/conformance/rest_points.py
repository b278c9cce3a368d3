"""What the protocol says of HTTP: health, metadata, predictions, errors, and the extensions for bytes, classes and the index."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.conformance.points import Inapplicable, expect, registry
from tests.conformance.rest_client import HEADER_LENGTH, JSON, Reply, RestServer, refused, same
from tests.conformance.tensors import nested, of_document

POINTS, point = registry()
BINARY = "binary_tensor_data"
CLASSES = "classification"
INDEX = "model_repository"
ABSENT = "no-such-model"


# --- health and metadata


@point("server", "GET /v2/health/live is 200")
def live(server: RestServer) -> None:
    expect((status := server.ask("GET", "/v2/health/live").status) == 200, f"status {status}")


@point("server", "GET /v2/health/ready is 200")
def ready(server: RestServer) -> None:
    expect((status := server.ask("GET", "/v2/health/ready").status) == 200, f"status {status}")


@point("server", "health answers are JSON with `live` and `ready`", required=False)
def health_is_json(server: RestServer) -> None:
    for path, member in (("/v2/health/live", "live"), ("/v2/health/ready", "ready")):
        expect(server.ask("GET", path).document().get(member) is True, f"{path} has no member {member}")


@point("server", "GET /v2 has name, version and extensions, without a redirect")
def server_metadata(server: RestServer) -> None:
    document = server.ask("GET", "/v2").document()
    expect(all(isinstance(document.get(name), str) for name in ("name", "version")), "name or version is missing")
    extensions = document.get("extensions")
    expect(isinstance(extensions, list) and all(isinstance(each, str) for each in extensions), "extensions is no list of texts")


@point("server", "GET /v2/ answers too", required=False)
def server_metadata_with_slash(server: RestServer) -> None:
    server.ask("GET", "/v2/").document()


@point("model", "GET /v2/models/NAME/ready is 200")
def model_ready(server: RestServer) -> None:
    expect((status := server.ask("GET", f"{server.path}/ready").status) == 200, f"status {status}")


@point("model", "readiness is JSON with `name` and `ready`", required=False)
def model_ready_is_json(server: RestServer) -> None:
    document = server.ask("GET", f"{server.path}/ready").document()
    expect(document.get("ready") is True and document.get("name") == server.model, f"the body is {document}")


@point("model", "the metadata has name, platform, inputs and outputs with name, datatype and shape")
def model_metadata(server: RestServer) -> None:
    document = server.metadata()
    expect(document.get("name") == server.model, "name is not that of the model")
    expect(isinstance(document.get("platform"), str), "platform is missing")
    for member in ("inputs", "outputs"):
        expect(isinstance(document.get(member), list), f"{member} is no list")
        for tensor in document[member]:
            right = isinstance(tensor.get("shape"), list) and all(isinstance(size, int) for size in tensor["shape"])
            expect(right and {"name", "datatype"} <= set(tensor), f"a tensor of {member} lacks name, datatype or shape")


@point("model", "the metadata names at least one input and one output", required=False)
def model_metadata_says_something(server: RestServer) -> None:
    document = server.metadata()
    expect(document["inputs"] and document["outputs"], "inputs or outputs is empty")


@point("model", "the outputs of an answer are those of the metadata: name, datatype and shape")
def outputs_are_those_of_the_metadata(server: RestServer) -> None:
    described = {each["name"]: each for each in server.metadata()["outputs"]}
    if not described:
        raise Inapplicable("the metadata describes no output")
    outputs = server.infer().outputs()
    expect(list(outputs) == list(described), f"outputs {list(outputs)} in place of {list(described)}")
    for name, tensor in outputs.items():
        shape = described[name]["shape"]
        expect(tensor.datatype == described[name]["datatype"], f"{name} is {tensor.datatype}")
        fits = len(shape) == len(tensor.shape) and all(size in (-1, own) for size, own in zip(shape, tensor.shape, strict=True))
        expect(fits, f"{name} has the shape {tensor.shape} in place of {shape}")


@point("model", "metadata, readiness and predictions answer below /versions/VERSION")
def versions(server: RestServer) -> None:
    base = f"{server.path}/versions/{server.version()}"
    expect((status := server.ask("GET", f"{base}/ready").status) == 200, f"{base}/ready is {status}")
    expect(server.ask("GET", base).document().get("name") == server.model, "the metadata has another name")
    same(server.ask("POST", f"{base}/infer", server.request).outputs(), server.infer().outputs())


@point("model", "a query behind a path is ignored", required=False)
def query(server: RestServer) -> None:
    server.ask("GET", f"{server.path}?verbose=1").document()
    server.ask("POST", f"{server.path}/infer?test=1", server.request).outputs()


# --- predictions


@point("infer", "an answer has model_name and outputs with name, datatype, shape and data that fill it")
def infer(server: RestServer) -> None:
    server.infer().outputs()


@point("infer", "an answer is application/json")
def infer_is_json(server: RestServer) -> None:
    kind = server.infer().headers.get("content-type", "")
    expect(kind.partition(";")[0].strip() == "application/json", f"Content-Type is {kind or 'missing'}")


@point("infer", "the id of a request is that of its answer")
def echo(server: RestServer) -> None:
    for identity in ("r7", 'ü "\\'):
        found = server.infer({"id": identity}).document().get("id")
        expect(found == identity, f"id is {found!r}")


@point("infer", "flat and nested data are the same tensor")
def flat_and_nested(server: RestServer) -> None:
    wanted = server.infer().outputs()
    inputs = [{**each, "data": of_document(each).values} for each in server.request["inputs"]]
    same(server.infer({"inputs": inputs}).outputs(), wanted)
    inputs = [{**each, "data": nested(of_document(each).values, each["shape"])} for each in server.request["inputs"]]
    same(server.infer({"inputs": inputs}).outputs(), wanted)


@point("infer", "two rows have two rows of answers")
def two_rows(server: RestServer) -> None:
    one = server.infer().outputs()
    inputs = []
    for each in server.request["inputs"]:
        tensor = of_document(each)
        shape = [2 * tensor.shape[0], *tensor.shape[1:]]
        inputs.append({**each, "shape": shape, "data": nested(tensor.values * 2, shape)})
    for name, tensor in server.infer({"inputs": inputs}).outputs().items():
        expect(tensor.shape[0] == 2 * one[name].shape[0], f"{name} has the shape {tensor.shape}")


@point("infer", "FP32, FP64 and their integers are numbers alike")
def datatypes(server: RestServer) -> None:
    if any(each["datatype"] not in ("FP32", "FP64") for each in server.request["inputs"]):
        raise Inapplicable("the example request has other inputs than numbers")
    for datatype in ("FP32", "FP64"):
        inputs = [{**each, "datatype": datatype} for each in server.request["inputs"]]
        server.infer({"inputs": inputs}).outputs()


@point("infer", "without `outputs`, all outputs of the metadata are answered")
def all_outputs(server: RestServer) -> None:
    names = [each["name"] for each in server.metadata()["outputs"]]
    if not names:
        raise Inapplicable("the metadata describes no output")
    found = list(server.infer({"outputs": None}).outputs())
    expect(sorted(found) == sorted(names), f"outputs {found} in place of {names}")


@point("infer", "`outputs` chooses among the outputs")
def chosen_outputs(server: RestServer) -> None:
    for name, tensor in server.infer().outputs().items():
        same(server.infer({"outputs": [{"name": name}]}).outputs(), {name: tensor})


@point("infer", "parameters that mean nothing to the server are ignored")
def parameters(server: RestServer) -> None:
    wanted = server.infer().outputs()
    sent = {"priority": 1, "timeout": 5_000_000, "flag": True, "text": "x"}
    same(server.infer({"parameters": sent}).outputs(), wanted)
    same(server.infer(server.first_input(parameters=sent)).outputs(), wanted)


@point("infer", "members that the protocol does not know are ignored", required=False)
def unknown_members(server: RestServer) -> None:
    same(server.infer({"model_name": server.model, "more": {"a": [1]}}).outputs(), server.infer().outputs())


@point("infer", "a missing value (null) is answered, or refused with an error", required=False)
def missing(server: RestServer) -> None:
    _answered_or_refused(server, "null")


@point("infer", "the token NaN is answered, or refused with an error", required=False)
def nan(server: RestServer) -> None:
    _answered_or_refused(server, "NaN")


def _answered_or_refused(server: RestServer, token: str) -> None:
    first = server.tensors()[0]
    if first.datatype not in ("FP32", "FP64"):
        raise Inapplicable("the first input of the example request holds no numbers")
    text = json.dumps({**server.request, **server.first_input(data=["@", *first.values[1:]])}).replace('"@"', token)
    reply = server.ask("POST", f"{server.path}/infer", text.encode())
    if reply.status == 200:
        reply.outputs()
    else:
        refused(reply)


@point("infer", "JSON is read whatever Content-Type says, and without one", required=False)
def content_types(server: RestServer) -> None:
    body, wanted = json.dumps(server.request).encode(), server.infer().outputs()
    for kind in (
        None,
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-8",
        "text/plain",
    ):
        reply = server.ask("POST", f"{server.path}/infer", body, {} if kind is None else {"Content-Type": kind})
        expect(reply.status == 200, f"{kind or 'no Content-Type'}: status {reply.status}")
        same(reply.outputs(), wanted)


@point("infer", "a body may be gzip", required=False)
def packed_body(server: RestServer) -> None:
    body = gzip.compress(json.dumps(server.request).encode())
    same(server.ask("POST", f"{server.path}/infer", body, {**JSON, "Content-Encoding": "gzip"}).outputs(), server.infer().outputs())


# --- errors

Replies = Callable[[RestServer], Iterator[Reply]]


def error(sentence: str, status: int) -> Callable[[Replies], Replies]:
    """Two points: these requests have an error with a text in `error`, and it has this status."""

    def add(replies: Replies) -> Replies:
        @point("errors", f"{sentence} is an error with a text in `error`")
        def is_error(server: RestServer) -> None:
            for reply in replies(server):
                refused(reply)

        @point("errors", f"{sentence} is {status}", required=False)
        def has_status(server: RestServer) -> None:
            for reply in replies(server):
                expect(reply.status == status, f"status {reply.status}")

        return replies

    return add


@error("an unknown model", 404)
def unknown_model(server: RestServer) -> Iterator[Reply]:
    yield server.ask("GET", f"/v2/models/{ABSENT}")
    yield server.ask("POST", f"/v2/models/{ABSENT}/infer", server.request)


@error("an unknown version", 404)
def unknown_version(server: RestServer) -> Iterator[Reply]:
    base = f"{server.path}/versions/987654"
    yield server.ask("GET", base)
    yield server.ask("POST", f"{base}/infer", server.request)


@error("a body that is not JSON", 400)
def no_json(server: RestServer) -> Iterator[Reply]:
    for body in (b"{", b"\xff\xfe", b""):
        yield server.ask("POST", f"{server.path}/infer", body, JSON)


@error("a body that is not an object", 400)
def no_object(server: RestServer) -> Iterator[Reply]:
    for body in (b"[]", b"7", b"null", b'"x"'):
        yield server.ask("POST", f"{server.path}/infer", body, JSON)


@error("a request without inputs", 400)
def no_inputs(server: RestServer) -> Iterator[Reply]:
    documents: list[dict[str, Any]] = [{}, {"inputs": []}, {"inputs": {}}, {"inputs": "x"}]
    for document in documents:
        yield server.ask("POST", f"{server.path}/infer", document)


@error("an input without name, shape, datatype or data", 400)
def lacking_members(server: RestServer) -> Iterator[Reply]:
    for member in ("name", "shape", "datatype", "data"):
        yield server.infer(server.first_input(**{member: None}))


@error("a member of a wrong type", 400)
def wrong_types(server: RestServer) -> Iterator[Reply]:
    changes: list[dict[str, Any]] = [{"name": 7}, {"shape": "x"}, {"shape": [1.5, 4]}, {"datatype": []}, {"data": {"a": 1}}]
    for change in changes:
        yield server.infer(server.first_input(**change))


@error("an unknown datatype", 400)
def unknown_datatype(server: RestServer) -> Iterator[Reply]:
    yield server.infer(server.first_input(datatype="FP63"))


@error("data that does not fill its shape", 400)
def data_and_shape(server: RestServer) -> Iterator[Reply]:
    first = server.tensors()[0]
    yield server.infer(server.first_input(data=first.values[:-1] or []))
    yield server.infer(server.first_input(data=[*first.values, first.values[0]]))
    yield server.infer(server.first_input(shape=[-1, *first.shape[1:]]))


@error("a shape that is not the model's", 400)
def another_shape(server: RestServer) -> Iterator[Reply]:
    yield server.infer(server.first_input(shape=[1, 1, *server.tensors()[0].shape]))


@error("a text among numbers", 400)
def text_for_number(server: RestServer) -> Iterator[Reply]:
    first = server.tensors()[0]
    if first.datatype == "BYTES":
        raise Inapplicable("the first input of the example request holds texts")
    yield server.infer(server.first_input(data=["no number", *first.values[1:]]))


@error("an unknown output", 400)
def unknown_output(server: RestServer) -> Iterator[Reply]:
    yield server.infer({"outputs": [{"name": "no-such-output"}]})


@point("errors", "the Content-Type of an error is application/json", required=False)
def errors_are_json(server: RestServer) -> None:
    kind = server.ask("POST", f"/v2/models/{ABSENT}/infer", server.request).headers.get("content-type")
    expect(kind == "application/json", f"Content-Type is {kind}")


@point("errors", "a wrong method and a wrong path have `error` too", required=False)
def wrong_method(server: RestServer) -> None:
    refused(server.ask("DELETE", f"{server.path}/infer"), 405)
    refused(server.ask("GET", "/v2/no/such/path"), 404)


# --- extensions


@point("bytes", "the server announces binary_tensor_data", extension=BINARY)
def announces_binary(server: RestServer) -> None:
    expect(server.announces(BINARY), "binary_tensor_data is not among the extensions")


@point("bytes", "inputs as bytes are answered as the same inputs in JSON", extension=BINARY)
def binary_inputs(server: RestServer) -> None:
    body, headers = server.binary()
    same(server.ask("POST", f"{server.path}/infer", body, headers).outputs(), server.infer().outputs())


@point("bytes", "binary_data_output makes all outputs bytes, and each is the one in JSON", extension=BINARY)
def binary_outputs(server: RestServer) -> None:
    body, headers = server.binary(parameters={"binary_data_output": True})
    reply = server.ask("POST", f"{server.path}/infer", body, headers)
    same(reply.outputs(), server.infer().outputs())
    expect(HEADER_LENGTH.lower() in reply.headers, f"{HEADER_LENGTH} is missing")
    head = json.loads(reply.body[: int(reply.headers[HEADER_LENGTH.lower()])])
    expect(all("binary_data_size" in each.get("parameters", {}) for each in head["outputs"]), "an output is not in bytes")


@point("bytes", "binary_data of an output goes before binary_data_output", extension=BINARY)
def binary_by_output(server: RestServer) -> None:
    wanted = server.infer().outputs()
    outputs = [{"name": name, "parameters": {"binary_data": False}} for name in wanted]
    reply = server.infer({"parameters": {"binary_data_output": True}, "outputs": outputs})
    expect(HEADER_LENGTH.lower() not in reply.headers, "the outputs are bytes")
    same(reply.outputs(), wanted)
    outputs[0]["parameters"] = {"binary_data": True}
    reply = server.infer({"outputs": outputs})
    expect(HEADER_LENGTH.lower() in reply.headers, "the first output is not in bytes")
    same(reply.outputs(), wanted)


@point("bytes", "sizes that do not add up are 400 with `error`", extension=BINARY)
def binary_sizes(server: RestServer) -> None:
    body, headers = server.binary()
    path = f"{server.path}/infer"
    refused(server.ask("POST", path, body[:-1], headers), 400)
    refused(server.ask("POST", path, body + b"\0", headers), 400)
    for length in (str(len(body) + 1), "-1", "x"):
        refused(server.ask("POST", path, body, {HEADER_LENGTH: length}), 400)


@point("bytes", "gzip counts the bytes before compression", extension=BINARY)
def binary_gzip(server: RestServer) -> None:
    body, headers = server.binary()
    reply = server.ask("POST", f"{server.path}/infer", gzip.compress(body), {**headers, "Content-Encoding": "gzip"})
    same(reply.outputs(), server.infer().outputs())


@point("classes", "an output of numbers as its best classes, `value:index` with the best first", extension=CLASSES)
def classification(server: RestServer) -> None:
    numbers = [
        each
        for each in server.infer().outputs().values()
        if each.datatype.startswith("FP") and len(each.shape) == 2 < each.shape[1]
    ]
    if not numbers:
        raise Inapplicable("no output has a number for each of several classes")
    ranked = server.infer({"outputs": [{"name": numbers[0].name, "parameters": {"classification": 2}}]}).outputs()[numbers[0].name]
    expect(ranked.datatype == "BYTES" and ranked.shape[-1] == 2, f"the output is {ranked.datatype} {ranked.shape}")
    pairs = [text.split(":")[:2] for text in ranked.values[:2]]
    row = numbers[0].values[: numbers[0].shape[1]]
    best = sorted(range(len(row)), key=lambda at: -row[at])[:2]
    expect([int(index) for _, index in pairs] == best, f"the classes {pairs} are not the best")


@point("index", "POST /v2/repository/index lists name and state, also for an empty body", extension=INDEX)
def index(server: RestServer) -> None:
    for body in (b"", b"{}", b'{"ready":true}'):
        reply = server.ask("POST", "/v2/repository/index", body, {} if not body else JSON)
        expect(reply.status == 200, f"status {reply.status} for the body {body.decode()!r}")
        listed = {each["name"]: each["state"] for each in reply.json()}
        expect(listed.get(server.model) == "READY", f"{listed} does not say READY of the model")
