"""Replacing a module's forward such that copies, hooks of other libraries and undoing keep working.

The module's class is replaced by a subclass of the same name with our forward, as in FSDP2. So code that
makes a new module from an old one's class and `__dict__` (accelerate's compile_regions), or that takes
`module.forward.__func__` (Accelerator.prepare), gets the forward of the right module. A forward that somebody
put on the module itself is wrapped in place; or, if it is known to keep the module's own forward
(accelerate's and diffusers' hooks), the kept one is replaced, which outlasts the hook.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from .diffusers import know_as
from .positions import Reader

_numbers = itertools.count()
_MARK = "_vsa_compile_interception"


class Prepared:
    """One prepared model: what its blocks share. A copy of the model gets one of its own."""

    def __init__(self, watches: bool = False, attention: Callable[..., Tensor] | None = None) -> None:
        self.number = next(_numbers)
        self.attention = attention  # what patch_attention put there: eager attention calls run through it
        self.reader = Reader()
        self.undone = False
        self.watches = watches  # whether a convolution shows the grid
        self.captures = True  # whether Dynamo should capture data-dependent sizes
        self._classes: dict[tuple[type, Role], type] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Prepared:
        copy = memo[id(self)] = Prepared(self.watches, deepcopy(self.attention, memo))
        return copy

    def __reduce__(self) -> tuple:
        return Prepared, (self.watches, self.attention)

    def subclass(self, base: type, role: Role) -> type:
        """A subclass of `base` with a forward in that role."""
        if (base, role) not in self._classes:

            def own(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if not isinstance(module, made):  # released since, but somebody kept the bound method
                    return base.forward(module, *args, **kwargs)
                plain: Any = super(made, module)  # looked up at each call: others may patch the class
                return plain.forward(*args, **kwargs)

            entries = {
                "forward": self.forward(own, base, role),
                "__reduce_ex__": _reduce,
                "__module__": base.__module__,
                "__qualname__": base.__qualname__,
                "__doc__": base.__doc__,
                _MARK: (self, role, base),
            }
            quiet = () if issubclass(base, _Unregistered) else (_Unregistered,)
            metaclass: Any = type(base)
            made: Any = metaclass(base.__name__, (*quiet, base), entries)
            self._classes[base, role] = made
            know_as(made, base)
        return self._classes[base, role]

    def forward(self, inner: Callable, base: type, role: Role, taken: object = None) -> Callable:
        """A function (module, ...) in that role around `inner`. `taken`: the forward on the module itself."""
        wrapped: Any = functools.wraps(base.forward)(role(inner, self, base))
        wrapped.__signature__ = inspect.signature(base.forward)
        del wrapped.__wrapped__  # Accelerator.unwrap_model would unwrap this too
        setattr(wrapped, _MARK, (self, role, taken))
        return wrapped

    def name(self, base: type) -> str:
        """A name for the code object of each class of each prepared model: by code object Dynamo counts
        compiled versions, up to a limit."""
        return f"{base.__name__}_forward_{self.number}"


class _Unregistered:
    """First of the bases, so that those that register what is derived of them do not hear of ours."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass


Role = Callable[[Callable, Prepared, type], Callable]
"""(forward, prepared model, class) -> the function that replaces the forward."""


def _reduce(module: nn.Module, protocol: SupportsIndex) -> tuple:
    """For copy and pickle: the class is made anew, and shared by the modules of one copy."""
    prepared, role, base = getattr(type(module), _MARK)
    make, arguments, *rest = super(type(module), module).__reduce_ex__(protocol)
    if not arguments or arguments[0] is not type(module):
        return make, arguments, *rest
    return _again, (prepared, role, make, base, *arguments[1:]), *rest


def _again(prepared: Prepared, role: Role, make: Callable, base: type, *arguments: object) -> nn.Module:
    module = make(base, *arguments)
    module.__class__ = prepared.subclass(base, role)
    return module


def prepared_as(module: nn.Module, role: Role) -> Prepared | None:
    """The prepared model for which a module is intercepted in that role; None if it is not (any more)."""
    for cls in type(module).__mro__:
        prepared, its_role, _ = cls.__dict__.get(_MARK, (None, None, None))
        if its_role is role and not prepared.undone:
            return prepared
    prepared, its_role, _ = getattr(module.__dict__.get("forward"), _MARK, (None, None, None))
    return prepared if its_role is role and prepared is not None and not prepared.undone else None


def intercept(module: nn.Module, role: Role, prepared: Prepared) -> None:
    """Route the calls of a module through the role; may be repeated."""
    cls = type(module)
    if not _passes(cls, role, prepared) and not isinstance(module, torch.jit.ScriptModule):
        module.__class__ = cls = prepared.subclass(cls, role)
    taken = module.__dict__.get("forward")
    if taken is None or getattr(taken, _MARK, (None,))[0] is prepared:
        return
    if not _replace_own(module, cls.forward):
        bound = getattr(taken, "__self__", None) is module
        inner = taken.__func__ if bound else lambda _, *args, **kwargs: taken(*args, **kwargs)
        around = prepared.forward(inner, cls, role, taken)
        module.forward = types.MethodType(around, module)


def _passes(cls: type, role: Role, prepared: Prepared) -> bool:
    """Whether calls pass through that role, and nobody assigned another forward to the class since, as caches
    do it that know a model by its class: `type(model).forward = ...`."""
    for one in cls.__mro__:
        owner, its_role, _ = getattr(one.__dict__.get("forward"), _MARK, (None, None, None))
        if "forward" in one.__dict__ and (owner is None or (owner is prepared and its_role is role)):
            return owner is not None
    return False


def release(module: nn.Module, prepared: Prepared) -> None:
    """Undo the interception, and undone ones below it. A wrapper that somebody has wrapped since stays, and
    only passes calls on."""
    owner, _, taken = getattr(module.__dict__.get("forward"), _MARK, (None, None, None))
    if owner is prepared and taken is not None:
        module.forward = taken
    while True:
        owner, _, base = type(module).__dict__.get(_MARK, (None, None, None))
        if owner is None or not owner.undone or not hasattr(type(module).__dict__["forward"], _MARK):
            return
        module.__class__ = base
        _replace_own(module, base.forward)


def _replace_own(module: nn.Module, forward: Callable) -> bool:
    """Put `forward` wherever the module's own bound forward is kept; returns whether it was anywhere."""
    classes = {cls.__dict__.get("forward") for cls in type(module).__mro__} | {forward}
    found = False
    for holder, name in _places(module):
        kept = getattr(holder, name, None)
        function = getattr(kept, "__func__", None)
        if getattr(kept, "__self__", None) is module and (function in classes or _of_class(function)):
            setattr(holder, name, types.MethodType(forward, module))
            found = True
    return found


def _of_class(function: object) -> bool:
    """Whether a function is the forward of a class that `Prepared.subclass` made."""
    return hasattr(function, _MARK) and getattr(function, _MARK)[2] is None


def _places(module: nn.Module) -> Iterator[tuple[object, str]]:
    """Where a module's own forward may be kept: on itself, or by accelerate's or diffusers' hooks."""
    if "forward" in module.__dict__:
        yield module, "forward"
    if "_old_forward" in module.__dict__:
        yield module, "_old_forward"
    for reference in getattr(module.__dict__.get("_diffusers_hook"), "_fn_refs", ()):
        yield reference, "original_forward"
