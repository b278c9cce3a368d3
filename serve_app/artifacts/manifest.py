"""The manifest: the typed description of one version, written as `metadata.json`.

Readers use attributes, so the name of each key occurs only here. Reading and writing keep unknown keys, so a manifest of a newer
release loses nothing. To create a manifest, use keywords, and complete it with `msgspec.structs.replace`:

    manifest = Manifest(signature=signature, data=DataSource(name="iris", sha256=digest, rows=150, columns=5, held_out=30))
    manifest = msgspec.structs.replace(manifest, forced=False)
    raw = describe(files, manifest)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Self, get_args, get_type_hints

import msgspec
import orjson
from msgspec import Meta

from serve_app.artifacts.manifest_bounds import MAX_VALUES, check_bounds
from serve_app.artifacts.names import MANIFEST, SEAL
from serve_app.artifacts.signature import Label, Signature
from serve_app.errors import BundleRefused

FORMAT = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_BUNDLE_BYTES = 4 * 1024 * 1024 * 1024

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object with typed keys; `extra` holds the keys that this release does not know.

    With `omit_defaults`, the JSON leaves out a key without a value; otherwise it has null.
    """

    extra: Mapping[str, Any] = {}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read a JSON object; raises ValueError for a value of the wrong type."""
        return msgspec.convert(_folded(cls, document), cls)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with the sections inside as dictionaries and the unknown keys among the others."""
        omit = self.__struct_config__.omit_defaults
        values = zip(self.__struct_encode_fields__, self.__struct_fields__, strict=True)
        document = {key: _plain(getattr(self, name)) for key, name in values if name != "extra"}
        return {**self.extra, **{key: value for key, value in document.items() if value is not None or not omit}}


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a bundle: sha256 in lower-case hexadecimal digits, size in bytes."""

    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0)]


class OnnxConversion(Section, frozen=True, kw_only=True, omit_defaults=True):
    """The result of the conversion to ONNX.

    `available` says whether the bundle has an ONNX form, and `reason` why it does not. `input` is the element type of the graph's
    input (`float64` or `float32`). With `rounded`, rows are rounded to float32 first. `largest_difference` from scikit-learn is
    that of `rows_compared` rows; `tolerance` is the allowed difference.
    """

    available: bool | None = None
    reason: str | None = None
    input: str | None = None
    rounded: bool | None = None
    largest_difference: float | None = None
    tolerance: float | None = None
    rows_compared: int | None = None


class Frame(Section, frozen=True, kw_only=True, omit_defaults=True):
    """The pandas frame that a pickled model takes instead of the coded matrix: its columns are the features, in their order.

    `dtypes` has the dtype that each column had when the model was fitted. `values` has the value of each code, for a column whose
    categories are not texts. `order` has the codes in the order of the dtype, for a column of dtype category whose order differs.
    `ordered` are the columns whose dtype has an order. serve_app/artifacts/frame_columns.py checks them.
    """

    dtypes: Mapping[str, str]
    values: Mapping[str, tuple[Label, ...]] = {}
    order: Mapping[str, tuple[int, ...]] = {}
    ordered: tuple[str, ...] = ()


class NativeForm(Section, frozen=True, kw_only=True, omit_defaults=True):
    """The model in the format of its library, for a bundle without an ONNX form.

    `file` is the name in the bundle; `version` is that of the `library` that wrote it. `order` has the positions of the signature's
    classes in the library's answer (None: the same order). With `texts`, CatBoost gets the texts of categories, and `gap` for a
    missing value; otherwise it gets codes. With `dates`, the library gets the parts of dates instead of the dates.
    `largest_difference` is the largest difference from the trained model on `rows_compared` rows.
    """

    file: str
    library: str
    version: str
    order: tuple[int, ...] | None = None
    texts: bool | None = None
    gap: str | None = None
    dates: bool | None = None
    largest_difference: float | None = None
    rows_compared: int | None = None


class Libraries(Section, frozen=True, kw_only=True, omit_defaults=True):
    """Versions of the libraries that trained and converted the model."""

    scikit_learn: str | None = msgspec.field(default=None, name="scikit-learn")
    numpy: str | None = None
    onnxruntime: str | None = None
    skl2onnx: str | None = None
    python: str | None = None


class DataSource(Section, frozen=True, kw_only=True):
    """The table: its name, the sha256 of the file, the numbers of rows, columns (with the target) and held-out rows."""

    name: str | None = None
    sha256: str | None = None
    rows: int | None = None
    columns: int | None = None
    held_out: int | None = None


class SourceCode(Section, frozen=True, kw_only=True):
    """The code of the training: version of the package, commit, and whether the working tree had changes (None: unknown)."""

    version: str | None = None
    commit: str | None = None
    changed: bool | None = None


class Verdict(Section, frozen=True, kw_only=True):
    """Whether the model may be served; `reasons` say why not; `comparison` describes the comparison with the served model."""

    accepted: bool
    reasons: tuple[str, ...] = ()
    comparison: Mapping[str, Any] = {}


class Adopted(Section, frozen=True, kw_only=True, omit_defaults=True):
    """The origin of a model that was fitted elsewhere.

    `file`, `file_format` and `sha256` describe the given model; `model_class` is its class. `packages` are the libraries that its
    file names. `largest_difference` is the largest difference between the given model and that of the bundle on `rows_compared`
    rows. `labelled`: the sample had labels. `held_out`: its owner states that the model was not fitted on it.
    """

    file: str | None = None
    file_format: str | None = None
    sha256: str | None = None
    model_class: str | None = None
    packages: tuple[str, ...] = ()
    largest_difference: float | None = None
    rows_compared: int | None = None
    labelled: bool | None = None
    held_out: bool | None = None
    unused_columns: tuple[str, ...] = ()


class Manifest(Section, frozen=True, kw_only=True):
    """The description of one version.

    `feature_names` to `mlflow_model_uri` are the keys of the legacy layout, which other programs read; they are null when they do
    not apply. `n_estimators` and `max_depth` repeat `parameters`. Times are ISO 8601 texts in UTC. None means unknown.
    """

    # Written by `describe` and by the store.
    format: int = FORMAT
    version: int | None = None
    files: Mapping[str, FileEntry] = {}

    signature: Signature | None = None

    feature_names: tuple[str, ...] | None = None
    target_names: tuple[Label, ...] | None = None
    model_type: str | None = None
    n_estimators: Any = None
    max_depth: Any = None
    random_state: int | None = None
    n_features: int | None = None
    n_samples: int | None = None
    local_model_path: str | None = None
    mlflow_run_uri: str | None = None
    mlflow_experiment_name: str | None = None
    mlflow_run_name: str | None = None
    mlflow_run_id: str | None = None
    mlflow_relative_path: str | None = None
    mlflow_model_name: str | None = None
    mlflow_model_version: str | int | None = None
    mlflow_model_uri: str | None = None

    estimator: str | None = None
    """The requested estimator: a built-in name, or `package.module:factory`."""
    parameters: Mapping[str, Any] | None = None
    data: DataSource | None = None
    code: SourceCode | None = None
    libraries: Libraries | None = None
    onnx: OnnxConversion | None = None
    frame: Frame | None = None
    """The frame that the pickled model takes; None for a model that takes the coded matrix."""
    native: NativeForm | None = None
    trained_at: str | None = None
    test_size: float | None = None
    reference: Mapping[str, Any] | None = None
    """Histograms of the training rows (serve_app/telemetry/drift.py reads them)."""
    importance: Mapping[str, float | None] | None = None
    """Permutation importance by feature name; None for a feature that was not measured within the time limit."""
    search: Mapping[str, Any] | None = None
    """Metric, number of folds, candidates, and the position of the best candidate; None without a search of parameters."""
    decision: Mapping[str, Any] | None = None
    """How training chose the threshold of the signature: the positive class, the threshold and, if used, the costs."""
    calibration: Mapping[str, Any] | None = None
    """The `method` that corrected the probabilities, and the number of `rows` behind the bound of the coverage."""
    limits: Mapping[str, float | None] | None = None
    """Metric floors and ceilings that the verdict applied."""
    verdict: Verdict | None = None
    forced: bool | None = None
    """Whether the model was published although the verdict refused it."""
    tags: Mapping[str, str] | None = None
    tracking: str | None = None
    """`mlflow`, or `none` for a training without tracking."""
    origin: str | None = None
    """`plain` for a bundle from a legacy layout, `mlflow` for one from a model in MLflow without a bundle."""
    adopted: Adopted | None = None
    """The origin of a model that was fitted elsewhere; None for a model of this project's training."""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read a JSON object; raises BundleRefused `signature` or `manifest` for a value of the wrong type."""
        raw = {key: value for key, value in document.items() if key != "signature"}
        try:
            signature = Signature.from_dict(document["signature"]) if "signature" in document else None
        except (TypeError, ValueError):
            raise BundleRefused("signature", f"{MANIFEST} holds no usable signature") from None
        try:
            manifest = super().from_dict(raw)
        except msgspec.ValidationError as error:
            raise BundleRefused("manifest", f"{MANIFEST}: {error}") from None
        return msgspec.structs.replace(manifest, signature=signature)

    @classmethod
    def from_legacy(cls, document: Mapping[str, Any]) -> Self:
        """Read the `metadata.json` of a legacy layout, where only the names of features and classes must be valid.

        It leaves out keys that describe a bundle and values of the wrong type, and keeps unknown keys. Raises BundleRefused
        `signature` when `feature_names` or `target_names` cannot be read.
        """
        raw = {}
        for key, value in document.items():
            try:
                super().from_dict({key: value})
            except ValueError:
                if key in ("feature_names", "target_names"):
                    raise BundleRefused("signature", f"{MANIFEST} holds no feature_names and target_names") from None
                continue
            raw[key] = value
        manifest = super().from_dict(raw)
        return msgspec.structs.replace(manifest, format=FORMAT, version=None, files={}, signature=None)


def sha256(data: bytes) -> str:
    """The sha256 of these bytes, in lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def describe(files: Mapping[str, bytes], manifest: Manifest) -> bytes:
    """The bytes of `metadata.json` for these files: the manifest with their sizes and digests.

    Raises ValueError for a name that a bundle cannot have.
    """
    for name in files:
        if not _is_file_name(name):
            raise ValueError(f"{name!r} cannot be the name of a file in a bundle")
    listing = {name: FileEntry(sha256(data), len(data)) for name, data in sorted(files.items())}
    document = msgspec.structs.replace(manifest, format=FORMAT, files=listing).to_dict()
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


def parse_manifest(raw: bytes) -> Manifest:
    """Read the bytes of `metadata.json`; raises BundleRefused `manifest`, `format` or `signature`."""
    document = json_object(raw, MANIFEST)
    if document.get("format") != FORMAT:
        raise BundleRefused("format", "the format of the bundle is unknown; upgrade the serving image")
    check_bounds(document, MANIFEST)
    manifest = Manifest.from_dict(document)
    if not manifest.files:
        raise BundleRefused("manifest", f"{MANIFEST} lists no files")
    if not all(_is_file_name(name) for name in manifest.files):
        raise BundleRefused("manifest", f"{MANIFEST} lists a file that cannot be part of a bundle")
    if sum(entry.size for entry in manifest.files.values()) > MAX_BUNDLE_BYTES:
        raise BundleRefused("manifest", f"the bundle is larger than {MAX_BUNDLE_BYTES} bytes")
    return manifest


def json_object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in the file `name`; raises BundleRefused `manifest`."""
    if raw.count(b",") > MAX_VALUES:  # before it is parsed
        raise BundleRefused("manifest", f"{name} holds more than {MAX_VALUES} values")
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise BundleRefused("manifest", f"{name} is not JSON") from None
    if not isinstance(document, dict):
        raise BundleRefused("manifest", f"{name} is not a JSON object")
    return document


def _is_file_name(name: str) -> bool:
    return _FILE.fullmatch(name) is not None and name not in (MANIFEST, SEAL)


def _plain(value: Any) -> Any:
    """A field's value as JSON types."""
    if isinstance(value, Section | Signature):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: msgspec.structs.asdict(item) if isinstance(item, FileEntry) else item for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _folded(kind: type[Section], document: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with its unknown keys moved into `extra`, also in nested sections."""
    sections = _sections(kind)
    known = {key: document[key] for key in sections if key in document}
    for key, section in sections.items():
        if section is not None and isinstance(known.get(key), dict):
            known[key] = _folded(section, known[key])
    return {**known, "extra": {key: value for key, value in document.items() if key not in sections}}


@cache
def _sections(kind: type[Section]) -> dict[str, type[Section] | None]:
    """The keys of a section, with the type of the nested section or None."""
    hints = get_type_hints(kind)
    fields = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    return {
        key: next((part for part in get_args(hints[name]) if isinstance(part, type) and issubclass(part, Section)), None)
        for key, name in fields.items()
        if name != "extra"
    }
