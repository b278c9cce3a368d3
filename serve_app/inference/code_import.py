"""Modules of the user's code from a bundle, imported for one version only.

The import runs the code with all permissions of the process. It happens only while a pickled model is loaded, which the load policy
must allow. A module keeps its name, but is in `sys.modules` only during the load, so two versions can have different modules with
the same name. An `import` statement inside such a module always finds the modules of its version, because the module has its own
`__import__`. `importlib.import_module` finds them only during the load. To read files of a package, use
`importlib.resources.files(module)`; `__file__` does not name a folder on the disk.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources.abc import Traversable, TraversableResources
from pathlib import Path
from types import ModuleType
from typing import Any

from serve_app.artifacts.code_package import Sources, read_packages, top_modules
from serve_app.errors import BundleRefused

_OURS = ("serve_app", "training")
_LOADING = threading.RLock()
"""Held while the modules of a version are in `sys.modules`."""


@contextlib.contextmanager
def packages_imported(files: Mapping[str, bytes]) -> Iterator[None]:
    """Within this context, the modules of the packages among the files of a bundle can be imported under their names.

    An installed module with identical files replaces that of the bundle. Raises BundleRefused `load` for a file that is not a
    package, and for a module that would hide a different installed module.
    """
    sources = read_packages(files)
    for name in sorted(top_modules(sources)):
        if is_installed(name):
            own = {path: content for path, content in sources.items() if path.split("/")[0] in (name, f"{name}.py")}
            if not _is_same(name, own):
                raise BundleRefused(
                    "load", f"the bundle has a module {name}, but a different module {name} is installed: rename it"
                )
            sources = {path: content for path, content in sources.items() if path not in own}
    if not top_modules(sources):
        yield
        return
    with CodeModules(sources).visible():
        yield


class CodeModules:
    """The modules of one version. The first import creates a module, which lives as long as something refers to it."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._names = top_modules(sources)
        self._modules: dict[str, ModuleType] = {}
        self._complete: set[str] = set()  # modules whose code has finished
        self._visible = False
        self._builtins = {**vars(builtins), "__import__": self._import}

    def holds(self, name: str) -> bool:
        """Whether this version has the module `name`."""
        return name.partition(".")[0] in self._names

    def spec(self, name: str) -> ModuleSpec | None:
        """The specification of a module; None when the version does not have the module."""
        path = name.replace(".", "/")
        for file, is_package in ((f"{path}/__init__.py", True), (f"{path}.py", False)):
            if file in self._sources:
                return self._spec(name, file, is_package=is_package)
        if any(source.startswith(f"{path}/") and source.endswith(".py") for source in self._sources):
            return self._spec(name, None, is_package=True)
        return None

    def module(self, name: str) -> ModuleType:
        """The module, after its parent packages are imported. Raises ModuleNotFoundError and the errors of its code."""
        if name in self._complete:
            return self._modules[name]
        with self.visible():
            above, _, own = name.rpartition(".")
            parent = self.module(above) if above else None
            if name not in self._modules:
                self._run(name)
                if parent is not None:
                    setattr(parent, own, self._modules[name])
            return self._modules[name]

    @contextlib.contextmanager
    def visible(self) -> Iterator[None]:
        """Within this context, the modules are in `sys.modules`; at its end, the modules that they hid are restored.

        Code may look up its own module there, like a dataclass with annotations as text.
        """
        with _LOADING:
            if self._visible:
                yield
                return
            before = _taken_out(self._names)
            sys.modules.update(self._modules)
            finder = _Finder(self)
            sys.meta_path.insert(0, finder)
            self._visible = True
            try:
                yield
            finally:
                self._visible = False
                sys.meta_path.remove(finder)
                _taken_out(self._names)
                sys.modules.update(before)

    def _run(self, name: str) -> None:
        spec = self.spec(name)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = self._builtins
        self._modules[name] = sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del self._modules[name]
            sys.modules.pop(name, None)
            raise
        self._complete.add(name)

    def _spec(self, name: str, file: str | None, *, is_package: bool) -> ModuleSpec:
        origin = f"<bundle>/{file or name.replace('.', '/')}"
        spec = ModuleSpec(
            name, _SourceLoader(self._sources, file, origin, is_package=is_package), origin=origin, is_package=is_package
        )
        if is_package:
            spec.submodule_search_locations = [f"<bundle>/{name.replace('.', '/')}"]
        spec.has_location = file is not None
        return spec

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names of `__import__`
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Replace `__import__` for the `import` statements in modules of this version."""
        absolute = importlib.util.resolve_name("." * level + name, _package(globals)) if level else name
        if not self.holds(absolute):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = self.module(absolute)
        if not fromlist:
            return self.module(absolute.partition(".")[0])
        wanted = getattr(module, "__all__", ()) if "*" in fromlist else fromlist
        for item in wanted:
            if not hasattr(module, item) and self.spec(f"{absolute}.{item}") is not None:
                self.module(f"{absolute}.{item}")
        return module


class _SourceLoader(InspectLoader):
    """Runs the source of a module and gives it to tracebacks; `file` is None for a folder without `__init__.py`."""

    def __init__(self, sources: Sources, file: str | None, origin: str, *, is_package: bool) -> None:
        self._sources = sources
        self._file = file
        self._origin = origin
        self._is_package = is_package

    def get_source(self, fullname: str) -> str:
        source = b"" if self._file is None else self._sources[self._file]
        return importlib.util.decode_source(source)

    def get_code(self, fullname: str) -> Any:
        return compile(b"" if self._file is None else self._sources[self._file], self._origin, "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        return self._is_package

    def get_resource_reader(self, fullname: str) -> TraversableResources:
        """The files of the package, for `importlib.resources`."""
        return _Resources(self._sources, fullname.replace(".", "/") + "/")


class _Resources(TraversableResources):
    def __init__(self, sources: Sources, folder: str) -> None:
        self._sources = sources
        self._folder = folder

    def files(self) -> Traversable:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, content in self._sources.items():
                if path.startswith(self._folder):
                    archive.writestr(path, content)
        return zipfile.Path(zipfile.ZipFile(buffer), self._folder)


class _Finder(MetaPathFinder):
    """Finds the modules of one version for code outside the version, such as the unpickler."""

    def __init__(self, modules: CodeModules) -> None:
        self._modules = modules

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not self._modules.holds(fullname):
            return None
        spec = self._modules.spec(fullname)
        if spec is not None:
            spec.loader = _ReadyLoader(self._modules)
        return spec


class _ReadyLoader(InspectLoader):
    """Returns a module that `CodeModules` has created."""

    def __init__(self, modules: CodeModules) -> None:
        self._modules = modules

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._modules.module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """The module has run already; the import system replaced its specification."""
        module.__spec__ = self._modules.spec(module.__name__)

    def get_source(self, fullname: str) -> None:
        return None


def _package(scope: Mapping[str, Any] | None) -> str:
    """The package of the module with this scope, for relative imports."""
    spec = (scope or {}).get("__spec__")
    return spec.parent if spec is not None else str((scope or {}).get("__package__", ""))


def _taken_out(names: frozenset[str]) -> dict[str, ModuleType]:
    """Remove the modules with these names and their submodules from `sys.modules`, and return them."""
    found = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in found}


def is_installed(name: str) -> bool:
    """Whether a module belongs to Python, an installed distribution or this application, not to a working folder."""
    if name in sys.stdlib_module_names or name in _OURS or name.startswith("__"):
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [place for place in (spec.origin, *(spec.submodule_search_locations or ())) if place is not None]
    return not places or any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)


def _is_same(name: str, sources: Sources) -> bool:
    """Whether the installed module `name` has these files."""
    if name in sys.stdlib_module_names or name in _OURS or name.startswith("__"):
        return False
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent.parent if spec.submodule_search_locations else Path(spec.origin).parent
    try:
        return all((folder / path).read_bytes() == content for path, content in sources.items())
    except OSError:
        return False
