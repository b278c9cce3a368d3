"""Calls of the published clients of the Open Inference Protocol, which have an environment of their own.

python tests/support/oip_clients.py triton|triton-aio|kserve|mlserver URL KEY prints what the client says of its calls, as JSON. The
model of the server is that of the iris flowers.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

MODEL = "IrisClassifier"
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.8, 2.8, 4.8, 1.4], [7.7, 2.6, 6.9, 2.3]])
OUTSIDE = np.array([[500.0, 3.5, 1.4, 0.2]])


def triton(url: str, key: str) -> dict[str, Any]:
    """tritonclient over HTTP."""
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    client = http.InferenceServerClient(url)

    def sent() -> Any:
        return {"headers": {"X-API-Key": key}}  # a new one for each call: the client leaves its own headers in it

    def tensor(values: Any, name: str = "input-0", datatype: str = "FP64", *, binary: bool = True) -> Any:
        tensor = http.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values.astype({"FP32": np.float32, "FP64": np.float64}[datatype]), binary_data=binary)
        return tensor

    def asked(*names: str, **options: Any) -> Any:
        return [http.InferRequestedOutput(name, **options) for name in names] or None

    def answer(inputs: Any, outputs: Any = None, **options: Any) -> dict[str, Any]:
        result = client.infer(MODEL, inputs, outputs=outputs, **sent(), **options)
        return {output["name"]: _plain(result.as_numpy(output["name"])) for output in result.get_response()["outputs"]}

    def error(call: Any) -> str:
        try:
            call()
        except InferenceServerException as refused:
            return str(refused)
        return ""

    index = client.get_model_repository_index(**sent())
    columns = [tensor(column, name) for name, column in zip(NAMES, ROWS.T, strict=True)]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL, "1"),
        "another version ready": client.is_model_ready(MODEL, "9"),
        "extensions": client.get_server_metadata()["extensions"],
        "metadata": client.get_model_metadata(MODEL, **sent()),
        "index": index,
        "binary": answer([tensor(ROWS)]),
        "binary, version": answer([tensor(ROWS)], model_version="1", request_id="r7", priority=1, timeout=5_000_000),
        "float32": answer([tensor(ROWS, datatype="FP32")]),
        "json": answer([tensor(ROWS, binary=False)], asked("predict", "predict_proba", binary_data=False)),
        "binary in, json out": answer([tensor(ROWS)], asked("predict", "predict_proba", binary_data=False)),
        "columns": answer(columns, asked("predict", "predict_proba")),
        "ranked": answer([tensor(ROWS)], asked("predict_proba", class_count=2)),
        "gzip": answer([tensor(ROWS)], request_compression_algorithm="gzip"),
        "deflate": answer([tensor(ROWS)], request_compression_algorithm="deflate"),
        "compressed answer": answer([tensor(ROWS)], response_compression_algorithm="gzip"),
        "id": client.infer(MODEL, [tensor(ROWS)], request_id="r7", **sent()).get_response()["id"],
        "bad value": error(lambda: answer([tensor(OUTSIDE)])),
        "missing": error(lambda: answer([tensor(np.full((1, 4), np.nan), binary=False)])),
        "bad shape": error(lambda: answer([tensor(ROWS[0])])),
        "no key": error(lambda: client.infer(MODEL, [tensor(ROWS)])),
        "load": error(lambda: client.load_model(MODEL, **sent())),
        "unload": error(lambda: client.unload_model(MODEL, **sent())),
    }


async def triton_aio(url: str, key: str) -> dict[str, Any]:
    """tritonclient over HTTP with asyncio, which says octet-stream of JSON too."""
    from tritonclient.http import aio

    def sent() -> Any:
        return {"headers": {"X-API-Key": key}}

    async with aio.InferenceServerClient(url) as client:
        answers = {}
        for name, binary in (("binary", True), ("json", False)):
            tensor = aio.InferInput("input-0", list(ROWS.shape), "FP64")
            tensor.set_data_from_numpy(ROWS, binary_data=binary)
            outputs = [aio.InferRequestedOutput(output, binary_data=binary) for output in ("predict", "predict_proba")]
            result = await client.infer(MODEL, [tensor], outputs=outputs, **sent())
            answers[name] = {output: _plain(result.as_numpy(output)) for output in ("predict", "predict_proba")}
        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready(MODEL),
            "index": await client.get_model_repository_index(**sent()),
            **answers,
        }


async def kserve(url: str, key: str) -> dict[str, Any]:
    """The REST client of KServe's SDK."""
    import httpx
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    base, sent = f"http://{url}", {"X-API-Key": key}
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def answer(rows: Any, *, binary: bool, **headers: str) -> dict[str, Any]:
        tensor = InferInput("input-0", list(rows.shape), "FP64")
        tensor.set_data_from_numpy(rows, binary_data=binary)
        result = await client.infer(base, InferRequest(MODEL, [tensor], request_id="q"), MODEL, headers={**sent, **headers})
        return {output.name: _plain(output.as_numpy()) for output in result.outputs}

    async def error(rows: Any, **headers: str) -> str:
        try:
            await answer(rows, binary=True, **headers)
        except httpx.HTTPStatusError as refused:
            return str(refused)
        return ""

    return {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model ready": await client.is_model_ready(base, MODEL),
        "binary": await answer(ROWS, binary=True),
        "json": await answer(ROWS, binary=False),
        "bad value": await error(OUTSIDE),
        "wrong key": await error(ROWS, **{"X-API-Key": "wrong"}),
    }


def mlserver(url: str, key: str) -> dict[str, Any]:
    """The codecs of MLServer, which its users write and read bodies with, and its command `mlserver infer`."""
    import pandas as pd
    from mlserver.codecs import NumpyCodec, NumpyRequestCodec, PandasCodec, StringCodec
    from mlserver.types import InferenceResponse, RequestOutput

    frame = pd.DataFrame(ROWS, columns=list(NAMES))
    codecs = {"predict": StringCodec, "predict_proba": NumpyCodec}

    def ask(request: Any, *names: str) -> Any:
        request.outputs = [RequestOutput(name=name) for name in names] or None
        body = request.model_dump_json(exclude_none=True).encode()
        post = Request(f"http://{url}/v2/models/{MODEL}/infer", body, {"X-API-Key": key})  # says that it is a form, as curl does
        with urlopen(post, timeout=60) as reply:
            return InferenceResponse.model_validate(json.load(reply))

    def answer(request: Any) -> dict[str, Any]:
        outputs = ask(request).outputs
        return {output.name: np.reshape(codecs[output.name].decode_output(output), output.shape).tolist() for output in outputs}

    def command(*options: str) -> list[dict[str, Any]]:
        """What `mlserver infer` writes for one request of each row, as outputs by name."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
            lines = [NumpyRequestCodec.encode_request(row[None]).model_dump_json(exclude_none=True) + "\n" for row in ROWS]
            source.write_text("".join(lines))
            program = [str(Path(sys.executable).with_name("mlserver")), "infer", "-u", url, "-m", MODEL, "-i", str(source)]
            program += ["-o", str(target), "-H", f"X-API-Key: {key}", *options]
            done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode or not target.exists():
                raise RuntimeError(done.stdout + done.stderr)
            answers = sorted(map(json.loads, target.read_text().splitlines()), key=lambda each: each["parameters"]["batch_index"])
        return [
            {each["name"]: np.reshape(each["data"], each["shape"]).tolist() for each in document["outputs"]} for document in answers
        ]

    return {
        "columns": answer(PandasCodec.encode_request(frame, use_bytes=False)),
        "tensor": answer(NumpyRequestCodec.encode_request(ROWS)),
        "float32": answer(NumpyRequestCodec.encode_request(ROWS.astype(np.float32))),
        "one output": NumpyRequestCodec.decode_response(ask(NumpyRequestCodec.encode_request(ROWS), "predict_proba")).tolist(),
        "infer": command(),
        "infer, merged": command("-s", "3"),
        "infer, binary": command("-b"),
    }


def _plain(values: Any) -> Any:
    """An array as lists; texts come as bytes or as str."""
    return [[value.decode() if isinstance(value, bytes) else value for value in row] for row in values.tolist()]


def main() -> None:
    """Run the calls of one client."""
    client, url, key = sys.argv[1:]
    calls: Any = {"triton": triton, "triton-aio": triton_aio, "kserve": kserve, "mlserver": mlserver}[client]
    result = calls(url, key)
    print(json.dumps(asyncio.run(result) if asyncio.iscoroutine(result) else result))


if __name__ == "__main__":
    main()
