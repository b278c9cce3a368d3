"""Calls over gRPC against MLServer's beside it: the same model, the same messages, one after the other in one run.

The load generator is h2load of nghttp2. MLServer has an environment of its own: MLSERVER_PYTHON names its Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from serve_app.artifacts.store import Store
from serve_app.protocols.grpc import open_inference_pb2 as oip
from tests.benchmarks.process import cpu_seconds, flush
from tests.support.calls import INFERENCE, MODEL, infer, values_of
from tests.support.models import dumped, iris
from tests.support.oip import tensor
from tests.support.server import KEY, ROOT, free_port, serving
from tests.support.waiting import until

MLSERVER_PYTHON = Path(os.environ.get("MLSERVER_PYTHON") or ROOT / ".venv/clients-mlserver/bin/python").absolute()
"""An environment with mlserver and mlserver-sklearn."""
LOADS = {
    "1 row, 32 calls in flight": (1, 32, True),
    "1 row, 1 call in flight": (1, 1, True),
    "1 row in typed fields, 32 calls in flight": (1, 32, False),
    "1,000 rows, 4 calls in flight": (1000, 4, True),
}
"""Rows of a call, calls at once on one connection, and whether the values are raw."""
METADATA = (("x-api-key", KEY),)


class Running(NamedTuple):
    """A server: the address of its calls, and its session."""

    address: str
    session: int


class Run(NamedTuple):
    """Rows in a second, and microseconds of CPU time of a call."""

    rate: float
    cpu: float


def can_run() -> bool:
    """Whether there is an MLServer."""
    return MLSERVER_PYTHON.exists()


def compare(store: Store, estimator: Any, folder: Path, *, seconds: int, repeat: int) -> dict[str, dict[str, float]]:
    """By load the rows in a second of both, the ratio, and the CPU time of a call in all processes of each."""
    runs: dict[str, list[tuple[Run, Run]]] = {load: [] for load in LOADS}
    with _mlserver(estimator, folder) as base, _ours(store, folder) as own:
        for _ in range(repeat):
            for load, (rows, at_once, raw) in LOADS.items():
                message = _message(rows, raw=raw)
                _check(base.address, own.address, message)
                pair = [_run(server, message, rows, at_once, seconds, folder) for server in (base, own)]
                runs[load].append((pair[0], pair[1]))
    return {load: _summary(pairs) for load, pairs in runs.items()}


def _run(server: Running, message: bytes, rows: int, at_once: int, seconds: int, folder: Path) -> Run:
    before = sum(cpu_seconds(server.session).values())
    calls, rate = _h2load(server.address, message, at_once, seconds, folder)
    return Run(rate * rows, 1e6 * (sum(cpu_seconds(server.session).values()) - before) / calls)


def _summary(pairs: list[tuple[Run, Run]]) -> dict[str, float]:
    ratios = [own.rate / base.rate for base, own in pairs]
    return {
        "mlserver_rate": statistics.median(base.rate for base, _ in pairs),
        "rate": statistics.median(own.rate for _, own in pairs),
        "mlserver_cpu": statistics.median(base.cpu for base, _ in pairs),
        "cpu": statistics.median(own.cpu for _, own in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def _message(rows: int, *, raw: bool) -> bytes:
    """A request for labels and probabilities; MLServer answers only what is asked for."""
    values = np.resize(iris()[0], (rows, 4)).astype(np.float64)
    outputs = [{"name": "predict"}, {"name": "predict_proba"}]
    message: bytes = infer(tensor(values, name="input-0"), raw=raw, outputs=outputs).SerializeToString()
    return message


def _call(address: str, message: bytes) -> bytes:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        reply: bytes = channel.unary_unary(f"/{INFERENCE}/ModelInfer")(message, metadata=METADATA, timeout=30)
        return reply


def _check(base: str, ours: str, message: bytes) -> None:
    """Both must give the same labels and, within 1e-5, the same probabilities before one of them is timed."""
    one, other = (values_of(oip.ModelInferResponse.FromString(_call(address, message))) for address in (base, ours))
    gap = np.abs(np.ravel(one["predict_proba"]) - np.ravel(other["predict_proba"])).max()
    if np.ravel(one["predict"]).tolist() != np.ravel(other["predict"]).tolist() or gap > 1e-5:
        raise AssertionError(f"different answers: {one} {other}")


def _h2load(address: str, message: bytes, at_once: int, seconds: int, folder: Path) -> tuple[int, float]:
    """Calls on one connection, and how many in a second. Raises AssertionError when a call failed; an error has no message."""
    body, expected = folder / "call.bin", 5 + len(_call(address, message))
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    headers = ("content-type: application/grpc", "te: trailers", f"x-api-key: {KEY}")
    options = [option for header in headers for option in ("-H", header)]
    command = ["h2load", "-c1", f"-m{at_once}", f"-D{seconds}", "-d", str(body), *options]
    text = subprocess.run([*command, f"http://{address}/{INFERENCE}/ModelInfer"], capture_output=True, text=True, check=True).stdout
    done, failed = (int(re.findall(rf"(\d+) {word}", text)[0]) for word in ("done", "failed"))
    data = int(re.findall(r"\((\d+)\) data", text)[0])
    if failed or data < 0.99 * done * expected:
        raise AssertionError(f"not every call was answered:\n{text}")
    return done, float(re.findall(r"finished in .*?, ([\d.]+) req/s", text)[0])


@contextlib.contextmanager
def _ours(store: Store, folder: Path) -> Iterator[Running]:
    port = free_port()
    settings: dict[str, Any] = {"IRIS_GRPC_PORT": str(port), "IRIS_ACCESS_LOG_EVERY": "0"}
    with serving(store.root, folder, **settings) as server:
        flush(server.process.pid)
        yield Running(f"127.0.0.1:{port}", server.process.pid)


@contextlib.contextmanager
def _mlserver(estimator: Any, folder: Path) -> Iterator[Running]:
    """MLServer with the model in its own process, which is its fastest way for a small model; the address of its calls."""
    models, ports = folder / "mlserver", [free_port() for _ in range(3)]
    models.mkdir()
    (models / "model.joblib").write_bytes(dumped(estimator))
    http, calls, metrics = ports
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": calls, "metrics_port": metrics, "parallel_workers": 0}
    (models / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    model = {"name": MODEL, "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "./model.joblib"}}
    (models / "model-settings.json").write_text(json.dumps(model))
    command = [str(MLSERVER_PYTHON.with_name("mlserver")), "start", str(models)]
    with (
        (folder / "mlserver.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=models, start_new_session=True) as process,
    ):
        address = f"127.0.0.1:{calls}"
        try:
            until(lambda: _is_ready(address), seconds=60, what="MLServer")
            yield Running(address, process.pid)
        finally:
            process.terminate()


def _is_ready(address: str) -> bool:
    with grpc.insecure_channel(address) as channel, contextlib.suppress(grpc.RpcError):
        request = oip.ModelReadyRequest(name=MODEL).SerializeToString()
        reply = channel.unary_unary(f"/{INFERENCE}/ModelReady")(request, timeout=2)
        ready: bool = oip.ModelReadyResponse.FromString(reply).ready
        return ready
    return False
