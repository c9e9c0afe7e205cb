"""One hash over what a user's method is made of: source, closure values, fields, and the helpers it names."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
import types
from fractions import Fraction
from typing import Any

import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Fraction, type(Ellipsis))
_PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)
_NAMED = (types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)
# Code that is named, not read: what it does goes with torch's version and backend.source_hash.
_KNOWN = {*sys.stdlib_module_names, "torch", __name__.split(".")[0]}


class _UnreadableError(Exception):
    """Something whose meaning no text tells: code without a source file, a tensor, an open file."""


def digest(method: Any) -> str | None:
    """16 hexadecimal digits; None where a part cannot be read."""
    parts: list[str] = []
    try:
        _collect(method, parts, {})
    except _UnreadableError:
        return None
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _collect(thing: Any, parts: list[str], seen: dict[int, Any]) -> None:
    """Appends what describes `thing`."""
    if isinstance(thing, _PLAIN):
        parts.append(f"{type(thing).__name__} {thing!r}")
    elif isinstance(thing, _NAMED):
        parts.append(f"{getattr(thing, '__module__', '')}.{thing.__name__}")
    elif id(thing) in seen:
        parts.append("again")
    else:
        seen[id(thing)] = thing  # kept alive, or a temporary's id would be found again
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


def _collect_items(items: Any, parts: list[str], seen: dict[int, Any]) -> None:
    parts.append(f"{type(items).__name__} {len(items)}")
    if isinstance(items, dict):
        items = [part for pair in items.items() for part in pair]
    elif isinstance(items, (set, frozenset)):
        items = sorted(items, key=repr)
    for item in items:
        _collect(item, parts, seen)


def _is_known(thing: Any, parts: list[str]) -> bool:
    """Appends the name of a function or class; whether that is all there is to say of it."""
    parts.append(f"{thing.__module__}.{thing.__qualname__}")
    return (thing.__module__ or "").split(".")[0] in _KNOWN


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError) as error:
        raise _UnreadableError from error


def _collect_function(function: types.FunctionType, parts: list[str], seen: dict[int, Any]) -> None:
    """Its source, defaults, closure values, and the globals that it names."""
    if _is_known(function, parts):
        return
    parts.append(_source(function))
    _collect_items((function.__defaults__, function.__kwdefaults__), parts, seen)
    for cell in function.__closure__ or ():
        _collect(cell.cell_contents, parts, seen)
    for name in sorted(_names(function.__code__) & function.__globals__.keys()):
        parts.append(name)
        _collect(function.__globals__[name], parts, seen)


def _names(code: types.CodeType) -> set[str]:
    """The names that code uses, functions inside it included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _collect_class(kind: type, parts: list[str], seen: dict[int, Any]) -> None:
    """Its source and that of its bases, and what their functions name."""
    for base in kind.__mro__:
        if _is_known(base, parts):
            continue
        parts.append(_source(base))
        for value in vars(base).values():
            function = getattr(value, "__func__", getattr(value, "fget", value))
            # Those that dataclass writes have no file.
            if inspect.isfunction(function) and function.__code__.co_filename == inspect.getsourcefile(base):
                _collect(function, parts, seen)


def _collect_object(thing: Any, parts: list[str], seen: dict[int, Any]) -> None:
    """Its class, and its fields: all of a dataclass, or everything it holds."""
    if dataclasses.is_dataclass(thing):
        held = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    elif type(thing).__module__.split(".")[0] not in _KNOWN and hasattr(thing, "__dict__"):
        held = dict(vars(thing))
    else:
        raise _UnreadableError
    _collect(type(thing), parts, seen)
    _collect(held, parts, seen)
