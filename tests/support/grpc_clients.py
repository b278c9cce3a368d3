"""Calls of the published gRPC clients of the Open Inference Protocol, which have an environment of their own.

python tests/support/grpc_clients.py triton|triton-aio|kserve HOST:PORT KEY prints what the client says of its calls, as JSON. The
model of the server is that of the iris flowers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np

MODEL = "IrisClassifier"
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.8, 2.8, 4.8, 1.4], [7.7, 2.6, 6.9, 2.3]])
OUTSIDE = np.array([[500.0, 3.5, 1.4, 0.2]])
OUTPUTS = ("predict", "predict_proba")


def triton(url: str, key: str) -> dict[str, Any]:
    """tritonclient over gRPC, and its messages by hand for typed contents."""
    from tritonclient import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.utils import InferenceServerException

    client, sent = grpc.InferenceServerClient(url), {"headers": {"x-api-key": key}}

    def tensor(values: Any, name: str = "input-0", datatype: str = "FP64") -> Any:
        tensor = grpc.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values.astype({"FP32": np.float32, "FP64": np.float64}[datatype]))
        return tensor

    def answer(inputs: Any, outputs: Any = None, **options: Any) -> dict[str, Any]:
        result = client.infer(MODEL, inputs, outputs=outputs, **sent, **options)
        return {output.name: _plain(result.as_numpy(output.name)) for output in result.get_response().outputs}

    def error(call: Any) -> str:
        try:
            call()
        except InferenceServerException as refused:
            return f"{refused.status()} {refused.message()}"
        return ""

    def typed() -> dict[str, Any]:
        request = messages.ModelInferRequest(model_name=MODEL)
        added = request.inputs.add(name="input-0", datatype="FP64", shape=ROWS.shape)
        added.contents.fp64_contents.extend(ROWS.ravel().tolist())
        reply = client._client_stub.ModelInfer(request, metadata=(("x-api-key", key),))
        labels, shares = reply.outputs
        return {
            "predict": [[text.decode()] for text in labels.contents.bytes_contents],
            "predict_proba": np.reshape(shares.contents.fp64_contents, list(shares.shape)).tolist(),
        }

    columns = [tensor(column, name) for name, column in zip(NAMES, ROWS.T, strict=True)]
    metadata = client.get_model_metadata(MODEL, **sent, as_json=True)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL, "1"),
        "another version": error(lambda: client.is_model_ready(MODEL, "9")),
        "extensions": list(client.get_server_metadata().extensions),
        "inputs": [each["name"] for each in metadata["inputs"]],
        "index": client.get_model_repository_index(**sent, as_json=True)["models"],
        "raw": answer([tensor(ROWS)]),
        "raw, version": answer([tensor(ROWS)], model_version="1", request_id="r7", priority=1, timeout=5_000_000),
        "typed": typed(),
        "columns": answer(columns, [grpc.InferRequestedOutput(name) for name in OUTPUTS]),
        "gzip": answer([tensor(ROWS)], compression_algorithm="gzip"),
        "float32": answer([tensor(ROWS, datatype="FP32")]),
        "ranked": answer([tensor(ROWS)], [grpc.InferRequestedOutput("predict_proba", class_count=2)]),
        "rows": len(answer([tensor(np.tile(ROWS, (20_000, 1)))])["predict"]),
        "bad value": error(lambda: answer([tensor(OUTSIDE)])),
        "bad shape": error(lambda: answer([tensor(ROWS[0])])),
        "no key": error(lambda: client.infer(MODEL, [tensor(ROWS)])),
        "wrong key": error(lambda: client.infer(MODEL, [tensor(ROWS)], headers={"x-api-key": "wrong"})),
        "another model": error(lambda: client.infer("other", [tensor(ROWS)], **sent)),
        "too large": error(lambda: answer([tensor(np.zeros((600_000, 4)))])),
        "load": error(lambda: client.load_model(MODEL, **sent)),
        "unload": error(lambda: client.unload_model(MODEL, **sent)),
        "stream": error(lambda: client.get_inference_statistics(**sent)),
    }


async def triton_aio(url: str, key: str) -> dict[str, Any]:
    """tritonclient over gRPC with asyncio: many calls at once on one connection."""
    from tritonclient.grpc import aio

    sent = {"headers": {"authorization": f"Bearer {key}"}}
    async with aio.InferenceServerClient(url) as client:
        tensor = aio.InferInput("input-0", list(ROWS.shape), "FP64")
        tensor.set_data_from_numpy(ROWS)
        results = await asyncio.gather(*[client.infer(MODEL, [tensor], **sent) for _ in range(50)])
        answers = [{output: _plain(result.as_numpy(output)) for output in OUTPUTS} for result in results]
        return {"live": await client.is_server_live(), "ready": await client.is_server_ready(), "answers": answers}


async def kserve(url: str, key: str) -> dict[str, Any]:
    """The gRPC client of KServe's SDK."""
    import grpc
    from kserve import InferenceGRPCClient, InferInput, InferRequest

    client, sent = InferenceGRPCClient(url), [("x-api-key", key)]

    async def answer(rows: Any, *, raw: bool, headers: Any = sent) -> dict[str, Any]:
        tensor = InferInput("input-0", list(rows.shape), "FP64")
        tensor.set_data_from_numpy(rows, binary_data=raw)
        result = await client.infer(InferRequest(MODEL, [tensor], request_id="q"), headers=headers)
        return {output.name: _plain(output.as_numpy()) for output in result.outputs}

    async def error(rows: Any, headers: Any = sent) -> str:
        try:
            await answer(rows, raw=True, headers=headers)
        except grpc.RpcError as refused:
            return f"{refused.code()} {refused.details()}"
        return ""

    return {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model ready": await client.is_model_ready(MODEL),
        "raw": await answer(ROWS, raw=True),
        "typed": await answer(ROWS, raw=False),
        "bad value": await error(OUTSIDE),
        "wrong key": await error(ROWS, [("x-api-key", "wrong")]),
    }


def _plain(values: Any) -> Any:
    """An array as lists; texts come as bytes or as str."""
    return [[value.decode() if isinstance(value, bytes) else value for value in row] for row in values.tolist()]


def main() -> None:
    """Run the calls of one client."""
    client, url, key = sys.argv[1:]
    calls: Any = {"triton": triton, "triton-aio": triton_aio, "kserve": kserve}[client]
    result = calls(url, key)
    print(json.dumps(asyncio.run(result) if asyncio.iscoroutine(result) else result))


if __name__ == "__main__":
    main()
