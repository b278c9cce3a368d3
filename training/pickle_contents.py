"""Finds the names in a pickle without importing or running them.

A pickle is a program: it names functions and calls them. Here, a stub that keeps its arguments replaces every name, so the tree of
objects is built without running code. The numbers of arrays are skipped. A joblib file is a pickle with the numbers of arrays
between its instructions. Both may be compressed.
"""

from __future__ import annotations

import _compat_pickle
import bz2
import gzip
import importlib.util
import io
import lzma
import pickle
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from serve_app.errors import UsageError
from serve_app.printable import printable

MAX_BYTES = 8 << 30
"""Most bytes of a file after decompression."""
MAX_SECONDS = 120.0
MAX_NAMES = 5_000

KNOWN_PACKAGES = frozenset({"sklearn", "numpy", "scipy", "joblib", "pandas", "xgboost", "lightgbm", "catboost"})
"""Libraries of models. All other code belongs to the user, and must be importable when the model is loaded."""

_HARMLESS = frozenset(
    {
        *("collections", "copyreg", "datetime", "decimal", "fractions", "functools", "itertools", "math", "numbers", "string"),
        *("_codecs", "array", "enum", "re", "uuid", "zoneinfo", "pathlib", "random", "abc", "typing", "types", "dataclasses"),
        *("operator", "statistics", "warnings", "time", "calendar", "unicodedata", "_operator", "_collections", "weakref"),
    }
)
"""Modules of Python that models name. Any other module (os, subprocess, …) in a pickle counts as an attack."""
_BUILTINS = frozenset(
    {
        *("object", "type", "int", "float", "bool", "str", "bytes", "bytearray", "complex", "list", "tuple", "dict", "set"),
        *("frozenset", "slice", "range", "len", "abs", "min", "max", "sum", "round", "sorted", "super", "property", "getattr"),
        *("classmethod", "staticmethod", "print", "ValueError", "TypeError", "Exception", "Ellipsis", "NotImplemented", "reversed"),
    }
)
_NEVER = frozenset(
    {
        *("numpy.load", "numpy.save", "numpy.savez", "numpy.fromfile", "numpy.memmap", "numpy.genfromtxt", "numpy.loadtxt"),
        *("joblib.load", "joblib.dump", "joblib.numpy_pickle.load", "pandas.read_pickle", "pandas.io.pickle.read_pickle"),
        *("pandas.eval", "pandas.core.computation.eval.eval", "numpy.testing._private.utils.runstring", "operator.methodcaller"),
        *("_operator.methodcaller", "types.CodeType", "types.FunctionType", "sklearn.datasets.load_svmlight_file"),
    }
)
_OWN_CODE = "cloudpickle"


@dataclass(frozen=True, slots=True)
class PickleContents:
    """The names in a pickle, as `module.name`, ascending; `top` is the class of the object itself.

    `sklearn_versions` are the scikit-learn versions that saved its estimators.
    """

    top: str
    names: tuple[str, ...]
    sklearn_versions: tuple[str, ...] = ()
    has_arrays_of_joblib: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        """The top-level packages that loading imports, without those of Python."""
        packages = {name.partition(".")[0] for name in self.names}
        return tuple(sorted(packages - sys.stdlib_module_names - {"__main__"}))

    @property
    def foreign(self) -> tuple[str, ...]:
        """The names of code outside the libraries of models."""
        outside = KNOWN_PACKAGES | {_OWN_CODE, "serve_app"} | sys.stdlib_module_names
        return tuple(name for name in self.names if name.partition(".")[0] not in outside)

    @property
    def of_main(self) -> tuple[str, ...]:
        """The names from a script or notebook, which no other program can import."""
        return tuple(name for name in self.names if name.startswith("__main__."))

    @property
    def holds_code(self) -> bool:
        """Whether the file contains functions or classes, as cloudpickle writes them."""
        return _OWN_CODE in self.packages

    @property
    def hostile(self) -> tuple[str, ...]:
        """The names that no model needs, because they run commands, open files or evaluate text."""
        return tuple(name for name in self.names if _is_hostile(name))


def _is_hostile(name: str) -> bool:
    module, _, rest = name.partition(".")
    if name in _NEVER or rest.split(".")[0] in ("os", "sys", "subprocess", "builtins", "importlib"):
        return True
    if module == "builtins":
        return rest.split(".")[0] not in _BUILTINS
    return module in sys.stdlib_module_names and module not in _HARMLESS


class _Damaged(Exception):
    """The bytes are not a pickle, or end too early."""


class _Stub:
    """A placeholder for an object of any class: it accepts every call and keeps its state."""

    def __new__(cls, *_: Any, **__: Any) -> _Stub:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> _Stub:
        return _Stub()

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def append(self, _: Any) -> None:
        """Take an item, as a list does."""

    def extend(self, _: Any) -> None:
        """Take items, as a list does."""

    def add(self, _: Any) -> None:
        """Take an item, as a set does."""

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


class _Array(_Stub):
    """joblib's placeholder for an array, whose numbers follow in the file."""


def _reconstructor(kind: Any, *_: Any) -> Any:
    """The replacement of `copyreg._reconstructor` in pickles of old protocols: an object of the class."""
    return kind() if isinstance(kind, type) and issubclass(kind, _Stub) else _Stub()


class _Bounded(io.RawIOBase):
    """A stream that ends with an error after MAX_BYTES or MAX_SECONDS."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = MAX_BYTES
        self._deadline = time.monotonic() + MAX_SECONDS

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        return self._counted(data)

    def readline(self, size: int | None = -1) -> bytes:
        return self._counted(self._stream.readline(self._left + 1))

    def skip(self, size: int) -> None:
        """Skip bytes."""
        while size > 0:
            data = self.read(min(size, 1 << 20))
            if not data:
                raise _Damaged
            size -= len(data)

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0 or time.monotonic() > self._deadline:
            raise UsageError(
                f"the model file holds more than {MAX_BYTES >> 30} GiB, or its inspection takes more than {MAX_SECONDS:g} s"
            )
        return data


_Python: Any = pickle._Unpickler  # noqa: SLF001, the C class cannot follow joblib's arrays


class _Look(_Python):  # type: ignore[misc]
    """An unpickler that imports nothing."""

    dispatch: Mapping[int, Callable[[Any], None]] = _Python.dispatch.copy()

    def __init__(self, stream: _Bounded, seen: set[tuple[str, str]], versions: set[str], stubs: dict[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self.stream, self.seen, self.versions, self.stubs = stream, seen, versions, stubs

    def find_class(self, module: str, name: str) -> Any:
        key = (str(module), str(name))
        if self.proto < 3:  # as pickle does: names of Python 2
            key = _compat_pickle.NAME_MAPPING.get(key, (_compat_pickle.IMPORT_MAPPING.get(key[0], key[0]), key[1]))
        self.seen.add(key)
        if len(self.seen) > MAX_NAMES:
            raise UsageError(f"the model file names more than {MAX_NAMES} classes and functions")
        if key == ("numpy", "dtype"):
            return np.dtype
        if key == ("copyreg", "_reconstructor"):
            return _reconstructor
        if key not in self.stubs:
            base = _Array if key == ("joblib.numpy_pickle", "NumpyArrayWrapper") else _Stub
            self.stubs[key] = type(key[1].rpartition(".")[2] or "_", (base,), {"__module__": key[0]})
        return self.stubs[key]

    def persistent_load(self, _: Any) -> Any:
        return _Stub()

    def get_extension(self, _: int) -> None:
        self.append(_Stub())

    def load_build(self) -> None:
        super().load_build()
        top = self.stack[-1]
        state = getattr(top, "state", None)
        if isinstance(top, _Array) and isinstance(state, dict):
            self._skip_numbers(state)
        elif isinstance(state, dict) and isinstance(state.get("_sklearn_version"), str):
            self.versions.add(state["_sklearn_version"])

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[index]

    def _skip_numbers(self, state: Mapping[str, Any]) -> None:
        dtype, shape = state.get("dtype"), state.get("shape", ())
        if not isinstance(dtype, np.dtype) or not all(isinstance(length, int) and length >= 0 for length in shape):
            raise _Damaged
        if dtype.hasobject:
            _Look(self.stream, self.seen, self.versions, self.stubs).load()
            return
        if state.get("numpy_array_alignment_bytes") is not None:
            self.stream.skip(int.from_bytes(self.stream.read(1), "little"))
        count = dtype.itemsize
        for length in shape:
            count *= length
        self.stream.skip(count)


def look(data: bytes) -> PickleContents:
    """The names in the bytes of a pickle. Raises UsageError when they are not a pickle, end too early, or exceed a limit."""
    seen: set[tuple[str, str]] = set()
    versions: set[str] = set()
    try:
        with _decompressed(data) as stream:
            top = _Look(_Bounded(stream), seen, versions, {}).load()
    except UsageError:
        raise
    except (MemoryError, RecursionError):
        raise UsageError("the model file needs more memory than allowed: it is damaged or malicious") from None
    except Exception:  # any: the file may hold anything
        raise UsageError("the model file is not a pickle, joblib or skops file, or it is cut off: save the model again") from None
    return PickleContents(
        top=printable(f"{type(top).__module__}.{type(top).__name__}"),
        names=tuple(sorted(printable(f"{module}.{name}") for module, name in seen)),
        sklearn_versions=tuple(sorted(versions)),
        has_arrays_of_joblib=("joblib.numpy_pickle", "NumpyArrayWrapper") in seen,
    )


def _decompressed(data: bytes) -> BinaryIO:
    """The bytes of the pickle as a stream, for every compression of joblib."""
    raw = io.BytesIO(data)
    if data[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if data[:3] == b"BZh":
        return bz2.BZ2File(raw)  # type: ignore[return-value]
    if data[:6] == b"\xfd7zXZ\x00" or data[:3] == b"\x5d\x00\x00":
        return lzma.LZMAFile(raw)  # type: ignore[return-value]
    if data[:1] == b"\x78" and len(data) > 1 and (data[0] * 256 + data[1]) % 31 == 0:
        return io.BufferedReader(_Zlib(raw))
    return raw


class _Zlib(io.RawIOBase):
    """A zlib stream that is decompressed piece by piece."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._inflate = raw, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._inflate.eof:
            piece = self._inflate.unconsumed_tail or self._raw.read(1 << 16)
            data = self._inflate.decompress(piece, len(view))
            if data:
                view[: len(data)] = data
                return len(data)
            if not piece:
                raise _Damaged
        return 0


def missing_modules(contents: PickleContents) -> Iterator[str]:
    """The modules of foreign names that cannot be imported here; this executes only the parent packages of a module."""
    for module in sorted({name.rpartition(".")[0] for name in contents.foreign if not name.startswith("__main__")}):
        top = module.partition(".")[0]
        if importlib.util.find_spec(top) is None:
            yield module
