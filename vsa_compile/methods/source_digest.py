"""One hash over what defines a user's method: source, closure values, fields, and the helpers that it names,
in its own module or in the user's other modules. Installed packages count by their version.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import inspect
import site
import sys
import sysconfig
import types
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction

import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Fraction, type(Ellipsis))
_PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)
_NAMED = (types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)
# Packages of which the name is enough: the versions of Python and torch are in the cache keys anyway, our own
# source through backend.source_hash.
_KNOWN = {*sys.stdlib_module_names, "torch", __name__.split(".")[0]}
_INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages())


class _UnreadableError(Exception):
    """A value whose meaning no source text gives: code without a file, a tensor, an open file."""


def digest(method: object) -> str | None:
    """16 hexadecimal digits; None if a part cannot be read."""
    parts: list[str] = []
    try:
        _collect(method, parts, {})
    except _UnreadableError:
        return None
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _collect(thing: object, parts: list[str], seen: dict[object, object]) -> None:
    """Append what describes `thing`."""
    if isinstance(thing, _PLAIN):
        parts.append(f"{type(thing).__name__} {thing!r}")
    elif isinstance(thing, _NAMED):
        parts.append(f"{getattr(thing, '__module__', '')}.{thing.__name__}")
    elif id(thing) in seen:
        parts.append("again")
    else:
        seen[id(thing)] = thing  # keeps it alive: the id of a dead temporary could be reused
        if isinstance(thing, (tuple, list, set, frozenset, dict)):
            _collect_items(thing, parts, seen)
        elif isinstance(thing, types.FunctionType):
            _collect_function(thing, parts, seen)
        elif isinstance(thing, types.MethodType):
            _collect_items((thing.__func__, thing.__self__), parts, seen)
        elif isinstance(thing, functools.partial):
            _collect_items((thing.func, thing.args, thing.keywords), parts, seen)
        elif isinstance(thing, type):
            _collect_class(thing, parts, seen)
        else:
            _collect_object(thing, parts, seen)


def _collect_items(items: Collection[object], parts: list[str], seen: dict[object, object]) -> None:
    parts.append(f"{type(items).__name__} {len(items)}")
    if isinstance(items, dict):
        items = [part for pair in items.items() for part in pair]
    elif isinstance(items, (set, frozenset)):
        items = sorted(items, key=repr)
    for item in items:
        _collect(item, parts, seen)


def _is_known(thing: type | types.FunctionType, parts: list[str]) -> bool:
    """Append the name of a function or class; return whether the name is all there is to say."""
    parts.append(f"{thing.__module__}.{thing.__qualname__}")
    return _is_known_module(thing.__module__ or "", parts)


def _is_known_module(name: str, parts: list[str]) -> bool:
    """Whether a module is described by its name, and by the version of its installed package, which is
    appended."""
    top = name.split(".")[0]
    if top in _KNOWN:
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    if not file.startswith(_INSTALLED):
        return False
    parts.append(str(getattr(sys.modules.get(top), "__version__", "")))
    return True


def _source(thing: type | types.FunctionType) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError) as error:
        raise _UnreadableError from error


def _collect_function(function: types.FunctionType, parts: list[str], seen: dict[object, object]) -> None:
    """Append a function's source, defaults, closure values, and the globals that it names."""
    if _is_known(function, parts):
        return
    parts.append(_source(function))
    _collect_items((function.__defaults__, function.__kwdefaults__), parts, seen)
    for cell in function.__closure__ or ():
        _collect(cell.cell_contents, parts, seen)
    names = _names(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        parts.append(name)
        _collect_named(function.__globals__[name], names, parts, seen)
    for module in _imported(function):
        _collect_named(module, names, parts, seen)


def _collect_named(thing: object, names: set[str], parts: list[str], seen: dict[object, object]) -> None:
    """Append what a function refers to by name; for a module of the user's, its members of those names."""
    _collect(thing, parts, seen)
    if not isinstance(thing, types.ModuleType) or _is_known_module(thing.__name__, parts):
        return
    here = (id(thing), frozenset(names))
    for name in sorted(names & vars(thing).keys()) if here not in seen else ():
        seen[here] = thing
        parts.append(name)
        _collect_named(vars(thing)[name], names, parts, seen)


def _names(code: types.CodeType) -> set[str]:
    """The names that code uses, inner functions included, and its strings, as in getattr(module, "f")."""
    codes = list(_codes(code))
    strings = {constant for each in codes for constant in each.co_consts if isinstance(constant, str)}
    return strings.union(*(each.co_names for each in codes))


def _imported(function: types.FunctionType) -> list[types.ModuleType]:
    """The modules that a function imports in its body."""
    modules = []
    for code in _codes(function.__code__):
        steps = list(dis.get_instructions(code))
        for at, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, names = steps[at - 2].argval, steps[at - 1].argval  # from . import x: 1, ("x",)
                package = function.__globals__.get("__package__") or ""
                modules += _modules("." * level + step.argval, package, names or ())
    return modules


def _modules(name: str, package: str, names: Iterable[str]) -> list[types.ModuleType]:
    """The module called `name`, and those of `names` that are modules inside it."""
    try:
        module = importlib.import_module(name, package)
        inner = [x for x in names if x != "*" and not hasattr(module, x)]
        return [module, *(importlib.import_module(f"{module.__name__}.{x}") for x in inner)]
    except ImportError as error:
        raise _UnreadableError from error


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code object and those of its inner functions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _collect_class(kind: type, parts: list[str], seen: dict[object, object]) -> None:
    """Append the source of a class and its bases, and what their functions name."""
    for base in kind.__mro__:
        if _is_known(base, parts):
            continue
        parts.append(_source(base))
        for value in vars(base).values():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            # Functions that dataclass generates have no file.
            if inspect.isfunction(function) and function.__code__.co_filename == inspect.getsourcefile(base):
                _collect(function, parts, seen)


def _collect_object(thing: object, parts: list[str], seen: dict[object, object]) -> None:
    """Append an object's class and its fields: those of a dataclass, or everything that it holds."""
    if dataclasses.is_dataclass(thing):
        held = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    elif type(thing).__module__.split(".")[0] not in _KNOWN and hasattr(thing, "__dict__"):
        held = dict(vars(thing))
    else:
        raise _UnreadableError
    _collect(type(thing), parts, seen)
    _collect(held, parts, seen)
