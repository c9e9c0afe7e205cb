"""The methods by name, and a user's own: registered under a name, compiled under `name@digest`."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

from torch import Tensor

from ..errors import ArgumentError, another_digest, bad_value, name_taken, unknown_name, unreadable_source
from .bsa import bsa
from .site import Site
from .source_digest import digest
from .sta import sta
from .vsa import vsa

log = logging.getLogger("vsa_compile.methods")

Run = Callable[[Tensor, Tensor, Tensor, Tensor | None, Site], Tensor]

_METHODS: dict[str, Run] = {"vsa": vsa, "bsa": bsa, "sta": sta}
_DIGESTS: dict[str, str] = {}  # of the users' own; ours are in the key by backend.source_hash

_UNREADABLE = "unreadable"


def names() -> tuple[str, ...]:
    """All known method names, sorted."""
    return tuple(sorted(_METHODS))


def literal(name: str) -> str:
    """The name as graphs hold it, and caches with them: `name`, or `name@digest` for a user's own.

    Raises ArgumentError as `get` does.
    """
    get(name)
    known = name.split("@")[0]
    return f"{known}@{_DIGESTS[known]}" if known in _DIGESTS else known


def get(name: str) -> Run:
    """The method called `name`, which may end in its @digest.

    Raises ArgumentError with the nearest name if there is none, or if what is registered is not what
    the digest was made of.
    """
    known, _, wanted = name.partition("@")
    if known not in _METHODS:
        raise ArgumentError(unknown_name("method", known, names()))
    if wanted and wanted != _DIGESTS.get(known):
        raise ArgumentError(another_digest(known))
    return _METHODS[known]


def readable(name: str) -> bool:
    """Whether the literal tells all there is to know of the method: caches may be asked for it."""
    return f"@{_UNREADABLE}-" not in name


def register_method(name: str, method: Run) -> None:
    """Make `method` known as options={"method": name} and `vsa_compile.attention(..., method=name)`.

    method: a `vsa_compile.methods.Method`, whose parts may be classes of your own, or any function
        (q, k, v, gate, site) -> out, with q and out (B, H, Nq, D), k and v (B, Hkv, Nkv, D), gate like q or
        None. It is traced: plain PyTorch, no `.item()`, and no state that changes.

    Compiled code is cached under the method's source, the values its functions close over and the fields of
    its dataclasses. Where the source cannot be read, caches are bypassed, and one log line says so.
    Registering the same again does nothing. Raises ArgumentError if the name is taken by another, or is no
    identifier.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ArgumentError(bad_value("name", name, "an identifier, such as 'nearest'"))
    if not callable(method):
        raise ArgumentError(
            bad_value("method", method, "a Method or a function (q, k, v, gate, site) -> out")
        )
    made_of = digest(method)
    if made_of is None:
        if _METHODS.get(name) is method:
            return
        log.warning("%s", unreadable_source(name))
        # Nobody will ever look under this key again: what torch stores anyway is never found.
        made_of = f"{_UNREADABLE}-{uuid.uuid4().hex}"
    if name in _METHODS and _DIGESTS.get(name) != made_of:
        raise ArgumentError(name_taken(name))
    _METHODS[name], _DIGESTS[name] = method, made_of
