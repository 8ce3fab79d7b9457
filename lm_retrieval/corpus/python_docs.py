"""A built-in corpus: the docstrings of the running interpreter's standard library, or of any installed package."""

import contextlib
import importlib
import inspect
import io
import logging
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document

logger = logging.getLogger(__name__)

# Importing these opens a window or a browser, prints, needs a display, or is a test suite or an old tool.
_LEFT_OUT = frozenset(
    [
        "antigravity",
        "this",
        "idlelib",
        "turtledemo",
        "turtle",
        "tkinter",
        "ensurepip",
        "test",
        "pydoc_data",
        "nt",
        "msvcrt",
        "winreg",
        "winsound",
        "ntpath",
        "genericpath",
        "distutils",
        "lib2to3",
        "sre_compile",
        "sre_constants",
        "sre_parse",
    ]
)
_PUBLIC_NAMES = {"posixpath": "os.path"}
_LEFT_OUT_PARTS = frozenset(("test", "tests", "testing_data", "__main__"))


def python_docs(packages: Sequence[str] = ()) -> Iterator[Document]:
    """Yields one document per documented module, class, function, method and property.

    `doc_id` is the qualified name (`itertools.chain`, `str.join`); the title is the signature; the text is the
    docstring. An object that several modules export appears once, under the shortest public name.

    Args:
        packages: names of installed packages; the standard library when empty.

    Raises:
        CorpusError: a package cannot be imported.
    """
    found: dict[str, Document] = {}
    owners: dict[int, str] = {}
    # all are imported before the first is read: importing a submodule changes its parent
    for module in list(_modules(packages)):
        for name, value in _members(module, packages):
            _collect(found, owners, name, value)
    yield from (found[name] for name in sorted(found))


def _modules(packages: Sequence[str]) -> Iterator[types.ModuleType]:
    names = packages or sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))
    # builtins first, so that `str` is found there before a module that re-exports it
    for name in sorted(names, key=lambda name: (name != "builtins", name)):
        if name in _LEFT_OUT:
            continue
        module = _import(name)
        if module is None:
            if packages:
                raise CorpusError(f"package '{name}' cannot be imported; install it first or check the name")
            continue
        yield module
        for child in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}.", onerror=lambda _: None):
            parts = child.name.split(".")
            if any(part.startswith("_") or part in _LEFT_OUT_PARTS for part in parts):
                continue
            submodule = _import(child.name)
            if submodule is not None:
                yield submodule


def _import(name: str) -> types.ModuleType | None:
    """Imports quietly; a module that this platform lacks is passed over."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(Exception, SystemExit),
    ):
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
    logger.debug("module %s cannot be imported here", name)
    return None


def _members(module: types.ModuleType, packages: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The module itself and what it offers: its own objects, and those of the compiled helpers it exports."""
    module_name = _PUBLIC_NAMES.get(module.__name__, module.__name__)
    yield module_name, module
    roots = {name.partition(".")[0] for name in packages or (module.__name__,)}
    exported = getattr(module, "__all__", None)
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        home = getattr(value, "__module__", None)
        home = home if isinstance(home, str) else ""
        own = not home or home.partition(".")[0] in roots or module_name == "builtins"
        if own or (exported is None and home.startswith("_")) or (exported is not None and name in exported):
            yield name if module_name == "builtins" else f"{module_name}.{name}", value


def _collect(found: dict[str, Document], owners: dict[int, str], name: str, value: Any) -> None:
    earlier = owners.get(id(value))
    if earlier is not None and (earlier.count("."), len(earlier)) <= (name.count("."), len(name)):
        return
    text = _docstring(value)
    if earlier is not None:
        for old in [key for key in found if key == earlier or key.startswith(f"{earlier}.")]:
            del found[old]
    owners[id(value)] = name
    if text:
        found[name] = Document(name, _title(name, value), text)
    if inspect.isclass(value):
        # members of private base classes are reachable only through their public children
        private_bases = [base for base in value.__mro__[1:] if base.__name__.startswith("_")]
        members = {key: member for owner in (*reversed(private_bases), value) for key, member in vars(owner).items()}
        for attribute, member in sorted(members.items()):
            if attribute.startswith("_") or not _documented_member(member):
                continue
            member_text = _docstring(member)
            if member_text:
                full_name = f"{name}.{attribute}"
                found[full_name] = Document(full_name, _title(full_name, member), member_text)


def _documented_member(member: Any) -> bool:
    return (
        inspect.isroutine(member)
        or isinstance(member, (property, staticmethod, classmethod))
        or inspect.isdatadescriptor(member)
    )


def _docstring(value: Any) -> str:
    target = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    text = getattr(target, "__doc__", None)
    if not isinstance(text, str) or (inspect.isclass(value) and text == getattr(value.__base__, "__doc__", None)):
        return ""
    return inspect.cleandoc(text).strip()


def _title(name: str, value: Any) -> str:
    """The name with its signature where Python knows one: `bisect.insort(a, x, lo=0, hi=None, *, key=None)`."""
    if inspect.ismodule(value):
        return f"module {name}"
    if inspect.isclass(value):
        return f"class {name}"
    target = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    # inspect evaluates text signatures of compiled code, which can raise anything
    with contextlib.suppress(Exception):
        signature = inspect.signature(target)
        bare = [
            parameter.replace(annotation=parameter.empty, default=_shown(parameter.default))
            for parameter in signature.parameters.values()
        ]
        visible = [parameter for parameter in bare if parameter.name not in ("self", "cls")]
        return f"{name}{signature.replace(parameters=visible, return_annotation=signature.empty)}"
    return name


class _Elided:
    def __repr__(self) -> str:
        return "..."


def _shown(default: Any) -> Any:
    """A default as the title shows it: `os.environ` or a path of this machine would tell about its owner."""
    if default is inspect.Parameter.empty or isinstance(default, (int, float, complex, bytes, type(None), type)):
        return default
    if isinstance(default, str):
        return _Elided() if Path(default).is_absolute() and len(default) > 1 else default
    if isinstance(default, (tuple, frozenset)) and all(_shown(item) is item for item in default):
        return default
    return _Elided()
