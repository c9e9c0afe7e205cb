"""The methods by name; a user's own is registered under its name and compiled under `name@digest`."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

from torch import Tensor

from .. import torch_compat
from ..errors import (
    ArgumentError,
    another_digest,
    bad_value,
    method_replaced,
    name_taken,
    unknown_name,
    unreadable_source,
)
from .bsa import bsa
from .site import Site
from .source_digest import digest
from .sta import sta
from .vsa import vsa

log = logging.getLogger("vsa_compile.methods")

MethodFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, Site], Tensor]

_METHODS: dict[str, MethodFunction] = {"vsa": vsa, "bsa": bsa, "sta": sta}
_OURS = frozenset(_METHODS)  # their sources are in the cache key through backend.source_hash
_registering = threading.Lock()

_UNREADABLE = "unreadable"


class _Digests:
    """The digests of users' methods, one attribute each, which Dynamo can guard."""


_digests = _Digests()


def names() -> tuple[str, ...]:
    """All known method names, sorted."""
    return tuple(sorted(_METHODS))


def literal(name: str) -> str:
    """The name as it stands in graphs and cache keys: `name`, or `name@digest` for a user's method.

    Raises ArgumentError as `get` does.
    """
    get(name)
    known = name.split("@")[0]
    made_of = getattr(_digests, known, None)
    return known if made_of is None else f"{known}@{made_of}"


def get(name: str) -> MethodFunction:
    """The method called `name`, which may end in its @digest.

    Raises ArgumentError for an unknown name, with the nearest known one, and for another digest than that of
    the registered method.
    """
    known, _, wanted = name.partition("@")
    if known not in _METHODS:
        raise ArgumentError(unknown_name("method", known, names()))
    if wanted and wanted != getattr(_digests, known, None):
        raise ArgumentError(another_digest(known))
    return _METHODS[known]


def guard_version(name: str) -> None:
    """Guard the running compilation on the method: Dynamo recompiles when another is registered as `name`."""
    if name not in _OURS:
        torch_compat.guard_on_attribute("vsa_compile", "methods", "registry", "_digests", name)


def readable(name: str) -> bool:
    """Whether the literal identifies the method's source, so that caches may be used."""
    return f"@{_UNREADABLE}-" not in name


def register_method(name: str, method: MethodFunction) -> None:
    """Register a method for options={"method": name} and `vsa_compile.attention(..., method=name)`.

        vsa_compile.register_method("own_tiles", Method(selector=TopK() | OwnTiles()))

    method: a `vsa_compile.methods.Method`, whose parts may be your own classes, or any function
        (q, k, v, gate, site) -> out, with q and out (B, H, Nq, D), k and v (B, Hkv, Nkv, D), gate like q or
        None. It is traced: plain PyTorch, no `.item()`, no changing state.

    Compiled code is cached under the method's source, its closure values, the fields of its dataclasses and
    the source of what it calls in your other modules; installed packages count by their version. If a source
    cannot be read, caches are bypassed and one log line says so. Registering the same method again does
    nothing. Registering another one (or an edited one) under the name replaces it, with one log line, and
    code compiled with the old one is compiled again at its next call.
    Raises ArgumentError if the name is a built-in method's or no identifier, or if `method` is not callable.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(bad_value("name", name, "an identifier, such as 'nearest'"))
    if not callable(method) or isinstance(method, type):  # a class would be called to make one
        raise ArgumentError(
            bad_value("method", method, "a Method or a function (q, k, v, gate, site) -> out")
        )
    if name in _OURS and method is not _METHODS[name]:
        raise ArgumentError(name_taken(name))
    with _registering:
        _register(name, method)


def _register(name: str, method: MethodFunction) -> None:
    made_of = digest(method)
    before = getattr(_digests, name, None)
    if _METHODS.get(name) is method and (made_of is None or name in _OURS):
        return
    if made_of is None:
        log.warning("%s", unreadable_source(name))
        # A key that nobody looks up again: what torch stores under it is never found.
        made_of = f"{_UNREADABLE}-{uuid.uuid4().hex}"
    if before not in (None, made_of):
        log.warning("%s", method_replaced(name))
    # The method first: a thread that sees the new digest must find the new method.
    _METHODS[name] = method
    setattr(_digests, name, made_of)
