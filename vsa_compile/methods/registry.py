"""The methods by name, and a user's own: registered under a name, compiled under `name@digest`."""

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
_OURS = frozenset(_METHODS)  # what they are made of is in the cache key by backend.source_hash
_registering = threading.Lock()

_UNREADABLE = "unreadable"


class _Digests:
    """What the users' methods are made of: an attribute for each, which Dynamo can guard."""


_digests = _Digests()


def names() -> tuple[str, ...]:
    """All known method names, sorted."""
    return tuple(sorted(_METHODS))


def literal(name: str) -> str:
    """The name as graphs hold it, and caches with them: `name`, or `name@digest` for a user's own.

    Raises ArgumentError as `get` does.
    """
    get(name)
    known = name.split("@")[0]
    made_of = getattr(_digests, known, None)
    return known if made_of is None else f"{known}@{made_of}"


def get(name: str) -> MethodFunction:
    """The method called `name`, which may end in its @digest.

    Raises ArgumentError with the nearest name if there is none, or if what is registered is not what
    the digest was made of.
    """
    known, _, wanted = name.partition("@")
    if known not in _METHODS:
        raise ArgumentError(unknown_name("method", known, names()))
    if wanted and wanted != getattr(_digests, known, None):
        raise ArgumentError(another_digest(known))
    return _METHODS[known]


def guard_version(name: str) -> None:
    """Dynamo shall compile what it is compiling again when another method is registered under `name`."""
    if name not in _OURS:
        torch_compat.guard_on_attribute("vsa_compile", "methods", "registry", "_digests", name)


def readable(name: str) -> bool:
    """Whether the literal tells all there is to know of the method: caches may be asked for it."""
    return f"@{_UNREADABLE}-" not in name


def register_method(name: str, method: MethodFunction) -> None:
    """Make `method` known as options={"method": name} and `vsa_compile.attention(..., method=name)`.

    method: a `vsa_compile.methods.Method`, whose parts may be classes of your own, or any function
        (q, k, v, gate, site) -> out, with q and out (B, H, Nq, D), k and v (B, Hkv, Nkv, D), gate like q or
        None. It is traced: plain PyTorch, no `.item()`, and no state that changes.

    Compiled code is cached under the method's source, the values its functions close over, the fields of its
    dataclasses, and the source of what it calls in other modules of yours; installed packages count by their
    version. Where the source cannot be read, caches are bypassed, and one log line says so.
    Registering the same again does nothing. Registering another under the name, an edited one say, replaces
    it, with one log line; what was compiled with the one before is compiled again at its next call.
    Raises ArgumentError if the name is one of ours, or no identifier.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(bad_value("name", name, "an identifier, such as 'nearest'"))
    if not callable(method):
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
        # Nobody will ever look under this key again: what torch stores anyway is never found.
        made_of = f"{_UNREADABLE}-{uuid.uuid4().hex}"
    if before not in (None, made_of):
        log.warning("%s", method_replaced(name))
    # The method first: a thread that finds the digest finds what it was made of.
    _METHODS[name] = method
    setattr(_digests, name, made_of)
