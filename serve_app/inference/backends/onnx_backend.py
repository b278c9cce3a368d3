"""The backend of ONNX Runtime, for a bundle with an ONNX form that training has proven equal. It unpickles nothing."""

from __future__ import annotations

import numpy as np
import onnxruntime

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import ONNX
from serve_app.artifacts.signature import Signature
from serve_app.errors import BundleRefused
from serve_app.inference.backends import Kind
from serve_app.inference.onnx_guard import check_onnx

_ELEMENT_TYPES = {"tensor(double)": np.float64, "tensor(float)": np.float32}


class OnnxBackend:
    """A session of ONNX Runtime on one thread, because a row is too little work for several threads.

    With `rounded`, rows are rounded to float32 first, as in scikit-learn's trees. Raises BundleRefused for a graph that
    `check_onnx` forbids, and the errors of ONNX Runtime for a graph that it cannot load.
    """

    __slots__ = ("_element_type", "_flat", "_input", "_outputs", "_rounded", "_run")

    def __init__(self, model: bytes, signature: Signature, *, rounded: bool) -> None:
        check_onnx(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.load_model_format", "ONNX")  # otherwise ONNX Runtime also accepts its own format
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        self._input = source.name
        self._element_type = _ELEMENT_TYPES[source.type]
        self._outputs = [session.get_outputs()[-1].name]  # a classifier gives label and probabilities, a regressor its value
        self._run = session.run
        self._rounded = rounded
        self._flat = not signature.score_shape

    @property
    def kind(self) -> Kind:
        """The library that computes."""
        return "onnx"

    def scores(self, matrix: Matrix) -> Scores:
        """Scores of coded rows, shape (rows, features)."""
        rows = matrix.astype(np.float32) if self._rounded else matrix
        values: Scores = self._run(self._outputs, {self._input: rows.astype(self._element_type, copy=False)})[0]
        return values.ravel() if self._flat else values


def open_onnx(bundle: Bundle) -> tuple[OnnxBackend, Signature]:
    """The backend of a bundle with an ONNX form, and its signature; raises BundleRefused `load`, `forbidden` or `signature`."""
    signature, conversion = bundle.signature, bundle.manifest.onnx
    if signature is None:
        raise BundleRefused("signature", "a model with an ONNX form needs a signature")
    if conversion is None or conversion.rounded is None:
        raise BundleRefused("load", "the manifest does not say how the ONNX form takes its rows")
    try:
        backend = OnnxBackend(bundle.files[ONNX], signature, rounded=conversion.rounded)
        shape = backend.scores(np.zeros((1, len(signature.features)))).shape
    except BundleRefused:
        raise
    except Exception as error:
        raise BundleRefused("load", f"{ONNX} cannot be loaded ({type(error).__name__})") from error
    expected = (1, *signature.score_shape)
    if shape != expected:
        raise BundleRefused("signature", f"{ONNX} gives scores of shape {shape}, but the signature needs {expected}")
    return backend, signature
