"""MLflow's scoring protocol: `/invocations`, as in `mlflow models serve` and the containers of SageMaker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import orjson

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Signature
from serve_app.protocols.codec import Buffer, CodecContext, ProblemDetails, ProtocolName
from serve_app.protocols.json_tables import FORMS, table_decoder
from serve_app.protocols.table_answers import predictions_encoder
from serve_app.protocols.table_codec import TableCodec

_ERROR_CODES: Mapping[int, str] = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}


class MlflowCodec(TableCodec):
    """One of `dataframe_split`, `dataframe_records`, `instances`, `inputs` and `input_data`; other members are ignored.

    The response is `{"predictions": […]}` with the results of the estimator's `predict`. The header line of CSV text is optional.
    """

    protocol: ClassVar[ProtocolName] = "mlflow"
    takes_lists = True
    problem_type = b"application/json"
    forms: ClassVar[Sequence[str]] = FORMS

    def json_decoder(self, context: CodecContext) -> Callable[[Buffer], Matrix]:
        """A table in one of the forms."""
        return table_decoder(context, self.forms)

    def json_encoder(self, signature: Signature) -> Callable[[Scores], Buffer]:
        """Plain predictions."""
        return predictions_encoder(signature)

    @classmethod
    def status(cls, problem: ProblemDetails) -> int:
        """The HTTP status; 400 for input that breaks the signature."""
        return 400 if problem.status == 422 else problem.status

    @classmethod
    def problem(cls, problem: ProblemDetails) -> bytes:
        """`{"error_code": …, "message": …}`; the message names fields and rules, never values."""
        code = "INVALID_PARAMETER_VALUE" if problem.code == "invalid_input" else _ERROR_CODES.get(problem.status, "BAD_REQUEST")
        return orjson.dumps({"error_code": code, "message": sentence(problem)})


def sentence(problem: ProblemDetails) -> str:
    """A problem as one text: the detail, then each field and the rule that it breaks."""
    rules = "; ".join(f"{error.field} {error.message}" for error in problem.errors)
    return f"{problem.detail} {rules}." if rules else problem.detail
