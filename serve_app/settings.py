"""The settings of the serving side with their defaults and meanings. `python -m serve_app settings` prints them as a table."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serve_app.artifacts.signing import SigningError, verifier
from serve_app.errors import IrisApiError
from serve_app.http.auth import KeysError, read_keys
from serve_app.http.key_strength import weakness
from serve_app.http.options import HttpOptions
from serve_app.http.prefix import is_prefix
from serve_app.http.rate_limit import COMPAT_RATES, RateLimits, parse_proxies
from serve_app.http.rate_window import parse_rate
from serve_app.http.routes.predictions import OWN_PATHS
from serve_app.secret_variables import MLFLOW_SECRETS, MOVED_SECRETS_DIR, SECRETS_DIR, strip_variables

if TYPE_CHECKING:
    from serve_app.inference.policy import LoadPolicy


_ROUTE = re.compile(r"(/[A-Za-z0-9._~:@-]+)+")


class SettingsError(IrisApiError):
    """A setting has a wrong value; the message names the setting and the fix."""


class Settings(BaseSettings):
    """The settings of a process, read from its environment.

    Names without a prefix come from the plain-Kubernetes system; all others begin with `IRIS_`. The defaults are only here:
    `http_options` and `load_policy` derive the options of the HTTP side and of the load policy.
    """

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore", env_ignore_empty=True)

    environment: Literal["development", "production"] = "development"
    """`production` refuses to start without an API key, with a key that can be guessed, or with CORS open to all origins."""
    api_key: SecretStr | None = None
    """Key that clients send as `X-API-Key` or `Authorization: Bearer`; if it is empty (development only), requests need no key."""
    api_key_previous: SecretStr | None = None
    """Key that replicas also accept while clients change to the new `API_KEY`."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins from which a browser may call, separated by commas; for GET and POST, without credentials."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest level of the logged messages."""
    model_dir: Path = Path("models")
    """The store: the bundles and the pointer to the served version (the image sets `/app/models`)."""
    mlflow_tracking_uri: str | None = None
    """MLflow server with the registry for `IRIS_MODEL_SOURCE`; with `store`, replicas use it only while the store is empty."""

    iris_api_keys_file: Path | None = None
    """File with the hashes, names and dates of more keys; replicas read it every two seconds (`docs/how-to/keys.md`)."""
    iris_allow_anonymous: bool = Field(False)
    """Allow production without any key, behind a gateway that authenticates, as in SageMaker and Vertex AI."""
    iris_secrets_dir: Path | None = None
    """Folder with a file for each secret, named like its variable, which takes precedence; API keys are read every two seconds."""
    iris_public_pages: bool = Field(True)
    """Serve `/ui`, `/docs`, `/redoc`, `/openapi.json` and `/metrics` without a key; with `false`, these pages need a key."""
    iris_console_actions: bool = Field(False)
    """Allow keys with the scope `manage` to promote and roll back in `/ui`, where the replica can write to the store."""
    iris_model_name: str = Field("IrisClassifier", min_length=1, pattern=r"^[A-Za-z0-9 ._-]+$")
    """Name of the registered model, in the registry and in the `X-Model-Name` header."""
    iris_model_alias: str = Field("champion", min_length=1)
    """Alias in MLflow's registry of the version to serve; a stage (`Production`) if no alias has this name."""
    iris_model_source: Literal["store", "mlflow", "newest"] = Field("store")
    """What selects the served model: the store's pointer, the alias in MLflow, or the last change (`docs/how-to/mlflow.md`)."""
    iris_cache_dir: Path | None = None
    """Folder for copies of MLflow's models if the store is read-only; if unset, a folder of this user below the temporary one."""
    iris_poll_seconds: float = Field(1.0, gt=0, le=3600)
    """Seconds between two reads of the store's pointer."""
    iris_registry_poll_seconds: float = Field(20.0, gt=0, le=86400)
    """Seconds between two queries of MLflow."""
    iris_predictor: Literal["auto", "onnx", "scikit-learn"] = Field("auto")
    """`auto` prefers ONNX Runtime if training proved it equal, then the library of a booster; `onnx` allows only ONNX Runtime."""
    iris_allow_joblib: bool = Field(True)
    """Allow unpickling of a model without an ONNX form and without a booster format; replicas check its digest first."""
    iris_verify_key: Path | None = None
    """PEM file of Ed25519 public keys; if set, replicas serve only bundles that they verify (`docs/explanation/security.md`)."""
    iris_max_load_seconds: float = Field(60.0, gt=0, le=3600)
    """Most seconds for the trial of a new model: a separate process loads it and computes its golden examples."""
    iris_max_load_memory_share: float = Field(0.5, gt=0, le=1)
    """Most memory for the trial of a new model, as a share of the container's memory (at most 1 GiB plus 30 times its files)."""
    iris_unknown_category: Literal["refuse", "unseen"] = Field("refuse")
    """Action for a category that training did not see: refuse it with 422, or predict it as unseen."""
    iris_unknown_fields: Literal["ignore", "refuse"] = Field("ignore")
    """Action for a request field that is not a feature of the model: ignore it, or refuse the request with 422."""
    iris_root_path: str = Field("")
    """Path prefix that a proxy in front adds, such as `/api/v1`; replicas answer requests with and without it."""
    iris_max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    """Largest request body in bytes; a larger body gets 413."""
    iris_max_row_bytes: int = Field(64 * 1024, ge=1024)
    """Largest body of `/predict` and largest row of a batch, in bytes (wide model: twice the size of its rows); more gets 413."""
    iris_max_body_seconds: float = Field(15.0, gt=0, le=3600)
    """Seconds in which a whole request body must arrive; a later one gets 408."""
    iris_max_rows: int = Field(100_000, ge=1)
    """Most rows in one `/predict/batch`; more rows get 413."""
    iris_max_in_flight: int = Field(300, ge=1)
    """Most requests that a replica answers at once; further ones get 429. The limit does not apply to probes and `/metrics`."""
    iris_max_wait_seconds: float = Field(1.0, gt=0, le=60)
    """Most seconds that a row waits for other rows in a replica (a batch: ten times that); a row with a longer wait gets 429."""
    iris_rate_limit_per_key: str | None = None
    """Rate limit of each key, such as `600/minute` (second, minute, hour), counted over all replicas."""
    iris_rate_limit_per_client: str | None = None
    """Rate limit of each client address, such as `600/minute`, counted over all replicas; probes do not count."""
    iris_compat_limits: bool = Field(False)
    """Fixed limits for each client address: 10 a minute on `/predict`, 20 on `/model/info`, 30 on `/health`."""
    iris_trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks of trusted proxies, whose `X-Forwarded-For` is used, separated by commas; `peer` trusts every direct peer."""
    iris_replicas: int = Field(1, ge=1, le=100)
    """Number of replicas of `iris-api serve`; on Kubernetes, the RayService sets it."""
    iris_grpc_port: int | None = Field(None, ge=1, le=65535)
    """Port for gRPC of `iris-api serve`; if unset, there is no gRPC. On Kubernetes, the RayService sets it."""
    iris_access_log_every: int = Field(100, ge=0)
    """Number N: one request in N is logged at INFO; 1 logs all, 0 logs none. Server errors are always logged."""
    iris_otlp_endpoint: str | None = None
    """Address of an OpenTelemetry collector (OTLP over HTTP), such as `http://collector:4318`; if unset, there are no spans."""
    iris_trace_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the requests with a span, for requests without the sampling decision of a `traceparent` header."""
    iris_log_format: Literal["auto", "json", "text"] = Field("auto")
    """`auto`: text on a terminal, JSON lines elsewhere."""

    iris_log_file: Path | None = None
    """File for the log lines in place of standard error; on Kubernetes `/proc/1/fd/2`, which `kubectl logs` shows."""

    aip_health_route: str = Field("")
    """Path that Vertex AI probes, set by Vertex AI in its containers: 200 once a model is loaded."""
    aip_predict_route: str = Field("")
    """Path of predictions in the protocol of Vertex AI, set by Vertex AI in its containers."""

    @model_validator(mode="before")
    @classmethod
    def _without_white_space(cls, values: Any) -> Any:
        """Strip white space, because a file, a Secret or `$(cat key)` in YAML ends with a line end; an empty value is not set."""
        if not isinstance(values, dict):
            return values
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("cors_origins", "iris_trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", "environment", mode="before")
    @classmethod
    def _any_case(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.upper() if info.field_name == "log_level" else value.lower()

    @field_validator("iris_rate_limit_per_key", "iris_rate_limit_per_client")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rate(value)
        return value

    @field_validator("iris_verify_key")
    @classmethod
    def _is_a_key(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                verifier(value)
            except SigningError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("model_dir")
    @classmethod
    def _is_no_file(cls, value: Path) -> Path:
        if os.path.exists(value) and not os.path.isdir(value):
            raise ValueError(f"{value} is a file; give a folder")
        return value

    @field_validator("iris_root_path")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and not is_prefix(path):
            raise ValueError("write a path as /api/v1: segments of letters, digits, `-`, `_`, `~` and `.`")
        return path

    @field_validator("aip_health_route", "aip_predict_route")
    @classmethod
    def _is_a_route(cls, value: str) -> str:
        if value and not _ROUTE.fullmatch(value):
            raise ValueError("write a path as /v1/endpoints/1/deployedModels/2:predict")
        return value

    @field_validator("aip_predict_route")
    @classmethod
    def _is_no_other_route(cls, value: str) -> str:
        if value in OWN_PATHS:
            raise ValueError(f"{value} already has another protocol; choose another path, like /vertex/predict")
        return value

    @field_validator("iris_otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            address = urlsplit(value)
            if address.scheme not in ("http", "https") or not address.hostname or address.query or address.username:
                raise ValueError("write the collector's address as http://collector:4318")
        return value

    @field_validator("iris_trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            parse_proxies(value)
        except ValueError:
            raise ValueError("write addresses or networks such as 10.0.0.0/8,127.0.0.1, or `peer`") from None
        return value

    @model_validator(mode="after")
    def _registry_has_an_address(self) -> Settings:
        if self.iris_model_source != "store" and not self.mlflow_tracking_uri:
            raise ValueError(
                f"IRIS_MODEL_SOURCE: `{self.iris_model_source}` needs an MLflow server; set MLFLOW_TRACKING_URI=http://HOST:PORT"
            )
        return self

    @model_validator(mode="after")
    def _production_is_closed(self) -> Settings:
        if self.environment == "production":
            self._check_keys()
            if "*" in self.cors_origins:
                raise ValueError("CORS_ORIGINS: production does not allow `*`; list the origins")
        return self

    def _check_keys(self) -> None:
        for name, secret in (("API_KEY", self.api_key), ("API_KEY_PREVIOUS", self.api_key_previous)):
            weak = weakness(secret.get_secret_value()) if secret else None
            if weak is not None:
                raise ValueError(f"{name}: the key {weak}; production needs at least 32 random characters: `openssl rand -hex 32`")
        if self.iris_allow_anonymous:
            if self.api_key is not None or self.iris_api_keys_file is not None:
                raise ValueError("IRIS_ALLOW_ANONYMOUS: keys are set, too; unset it, or unset API_KEY and IRIS_API_KEYS_FILE")
            return
        if self.api_key is not None:
            return
        if self.iris_api_keys_file is None:
            raise ValueError(
                "API_KEY: production needs a key; set one of at least 32 characters, for example from `openssl rand -hex 32`, "
                "or IRIS_ALLOW_ANONYMOUS=true behind a gateway that authenticates"
            )
        try:
            keys = read_keys(self.iris_api_keys_file)
        except KeysError as error:
            raise ValueError(f"IRIS_API_KEYS_FILE: {error}") from None
        if not keys:
            raise ValueError("IRIS_API_KEYS_FILE: production needs a key; make one with `python -m serve_app key --name …`")

    def http_options(self, *, sends_request_id: bool) -> HttpOptions:
        """The options of the HTTP side; `sends_request_id` is False when the server around it returns the id itself."""
        return HttpOptions(
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            api_key_previous=self.api_key_previous.get_secret_value() if self.api_key_previous else None,
            api_key_folder=self._api_key_folder(),
            api_keys_file=self.iris_api_keys_file,
            rate_limits=self.rate_limits(),
            cors_origins=self.cors_origins,
            model_name=self.iris_model_name,
            model_dir=self.model_dir,
            cache_dir=self.cache_dir(),
            max_body_bytes=self.iris_max_body_bytes,
            max_row_bytes=self.iris_max_row_bytes,
            max_body_seconds=self.iris_max_body_seconds,
            max_rows=self.iris_max_rows,
            max_in_flight=self.iris_max_in_flight,
            max_wait_seconds=self.iris_max_wait_seconds,
            unknown=self.iris_unknown_category,
            unknown_fields=self.iris_unknown_fields,
            root_path=self.iris_root_path,
            health_route=self.aip_health_route,
            predict_route=self.aip_predict_route,
            poll_seconds=self.iris_poll_seconds,
            log_every=self.iris_access_log_every,
            sends_request_id=sends_request_id,
            public_pages=self.iris_public_pages,
            console_actions=self.iris_console_actions,
        )

    def _api_key_folder(self) -> Path | None:
        """The folder whose file API_KEY holds the plain key; None without such a folder, or when the variable takes precedence."""
        folder = self.iris_secrets_dir
        moved = _folder_in(MOVED_SECRETS_DIR)
        is_variable = os.environ.get("API_KEY", "").strip() or (moved is not None and (moved / "API_KEY").is_file())
        return folder if folder is not None and not is_variable and (folder / "API_KEY").is_file() else None

    def cache_dir(self) -> Path:
        """The folder for copies of models on this machine."""
        return self.iris_cache_dir or Path(tempfile.gettempdir()) / f"iris-api-models-{os.getuid()}"

    def rate_limits(self) -> RateLimits:
        """The rate limits, and the trusted proxies that report client addresses."""
        rates = (self.iris_rate_limit_per_key, self.iris_rate_limit_per_client)
        per_key, per_client = (parse_rate(rate) if rate else None for rate in rates)
        per_route = COMPAT_RATES if self.iris_compat_limits else {}
        return RateLimits(per_key, per_client, per_route, parse_proxies(self.iris_trusted_proxies))

    def load_policy(self) -> LoadPolicy:
        """The load policy. Raises SigningError when the file of public keys cannot be read."""
        from serve_app.inference.policy import LoadPolicy, TrialLimits  # a process that only deploys does not need this import

        return LoadPolicy(
            allow_joblib=self.iris_allow_joblib,
            backend=self.iris_predictor,
            verify=verifier(self.iris_verify_key) if self.iris_verify_key else None,
            trial=TrialLimits(self.iris_max_load_seconds, self.iris_max_load_memory_share),
        )


def load_settings() -> Settings:
    """The settings of this process, from its environment and IRIS_SECRETS_DIR; raises SettingsError with one sentence."""
    folder = _folder_in(SECRETS_DIR)
    if folder is not None and not folder.is_dir():
        raise SettingsError(f"{SECRETS_DIR}: {folder} is not a folder; give a folder with one file for each secret")
    try:
        return Settings(_secrets_dir=[each for each in (folder, _folder_in(MOVED_SECRETS_DIR)) if each is not None])
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
        where = str(first["loc"][0]).upper() if first["loc"] else ""
        raise SettingsError(f"{where}: {message}" if where else message) from None


def export_mlflow_secrets(settings: Settings) -> None:
    """Set the variables that MLflow's client reads from the files of the secrets. Only a replica calls this."""
    strip_variables()
    for folder in (_folder_in(MOVED_SECRETS_DIR), settings.iris_secrets_dir):
        for name in MLFLOW_SECRETS if folder is not None else ():
            file = folder / name  # type: ignore[operator]
            if file.is_file():
                os.environ.setdefault(name, file.read_text().strip())


def _folder_in(variable: str) -> Path | None:
    """The folder in a variable; None when the variable is empty or not set."""
    value = os.environ.get(variable, "").strip()
    return Path(value) if value else None


def wants_json(settings: Settings) -> bool:
    """Whether logs are JSON lines."""
    if settings.iris_log_format == "auto":
        # Ray forwards the output of a replica to the launcher, which sets this variable when its output is a terminal.
        return not (sys.stderr.isatty() or os.environ.get("IRIS_TERMINAL") == "1")
    return settings.iris_log_format == "json"


def table() -> str:
    """The settings as a Markdown table, for the docs."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        text = {None: "none", (): "none"}.get(default, str(default))
        rows.append(f"| `{name.upper()}` | {text} | {field.description} |")
    return "\n".join(rows) + "\n"
