"""`patch_attention(model)`: sparse attention where Dynamo makes no graph of it.

A call in a function that Dynamo is told not to see, in a context manager that it cannot trace, or in a model
that is not compiled at all cannot be rewritten in a graph. Each is compiled by itself instead: a graph of
this one call, through the same backend.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .backend import Backend, read_options
from .convert.judge import check_layer
from .convert.refusals import Refused
from .errors import ArgumentError, RefusedError, not_prepared, refused_but_required
from .grid import Hint
from .grids.prepare import attention_of, preparation_of
from .options import Options
from .report.explain import options_of
from .runtime import eager_calls, state
from .torch_compat import no_frame, own_code, version_of

Model = TypeVar("Model", bound=nn.Module)
Run: TypeAlias = tuple[int, int]


def patch_attention(model: Model, options: Mapping[str, object] | Options | None = None) -> Model:
    """Make the attention calls of a prepared model that are in no graph sparse, too; returns the model.

        vsa_compile.prepare(model)
        vsa_compile.patch_attention(model, {"sparsity": 0.9})
        out = model(x)  # not compiled: its attention calls alone are, each as a graph of its own

    For calls that Dynamo cannot put into a graph (`explain` names the function that is disabled, or where the
    graph breaks), and for models that are not compiled. Those that are in a graph stay there.
    options: of the backend, for these calls; None means those that the model was compiled with, or the
    defaults. A later call replaces them.

    Of such a call no graph shows where its tokens came from. It becomes sparse if its queries and keys are
    as long as the sequence that `prepare` learned, or `video_grid` says, and it trusts that both are this
    sequence, in raster order: leave out, by `dense_layers`, what attends to others of just this length.
    A boolean mask (batch, 1, 1, keys) is read once per tensor, for which the host waits; the call
    becomes sparse if the mask is True for all of the video.

    `scaled_dot_product_attention` is replaced in torch.nn.functional and where other loaded modules have it
    by name, for good; outside of patched models it does what it did. Code that is loaded later and takes it
    from torch.nn.functional is routed, too. `unpatch_attention(model)`, or `unprepare(model)`, undoes it for
    the model. Copies and pickles of the model are patched, too.
    Raises ArgumentError if `model` is no torch.nn.Module, or not prepared; OptionError for bad options.
    """
    prepared = preparation_of(model)
    if prepared is None:
        raise ArgumentError(not_prepared(type(model).__name__))
    prepared.attention = EagerAttention(read_options(options_of(model, options)))
    eager_calls.install()
    return model


def unpatch_attention(model: Model) -> Model:
    """Undo `patch_attention(model)`; returns the model. A model that is not patched stays as it is.

    Raises ArgumentError if `model` is no torch.nn.Module.
    """
    prepared = preparation_of(model)
    if prepared is not None:
        prepared.attention = None
    return model


class EagerAttention:
    """The eager attention calls of a model; called with the arguments of scaled_dot_product_attention."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._backend = Backend(replace(options, dense_layers=()))  # a graph of one call has no path
        self._number = next(_numbers)
        # Its frames belong to no graph around it; it compiles its own.
        no_frame(EagerAttention.__call__)
        disable: Any = torch.compiler.disable
        self._alone: Callable[..., Tensor] = disable(self._attend)
        self._compiled: dict[Run | None, Callable[..., Tensor]] = {}
        self._paths: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._read: tuple[weakref.ref[Tensor], object, bool] | None = None

    def __reduce__(self) -> tuple:
        return EagerAttention, (self.options,)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._alone(*args, **kwargs)

    def _attend(self, *args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        hint = state.now.hint or (self.options.grid and Hint(self.options.grid))
        run = self._open_run(given.get("attn_mask"), hint) if hint is not None else None
        compiler = eager_calls.compiler()
        if compiler is not None:
            return compiler(_graph_of(run, self._number))(*args, **kwargs)
        if self._stays_dense(given, hint):
            return eager_calls.original(*args, **kwargs)
        if run not in self._compiled:
            self._compiled[run] = torch.compile(_graph_of(run, self._number), backend=self._backend)
        return self._compiled[run](*args, **kwargs)

    def _stays_dense(self, given: dict[str, Any], hint: Hint | None) -> bool:
        """Whether no graph is needed to tell that the call is not of the video, or that it is not wanted.

        Raises RefusedError where fallback="error" asks for it."""
        if any(type(given.get(name)) not in (Tensor, nn.Parameter) for name in _ARGUMENTS[:3]):
            return True  # fake ones, and other subclasses
        strict = self.options.fallback == "error"
        lengths = _lengths(given)
        if not strict and (len(lengths) > 1 or (hint is not None and lengths != {hint.sequence})):
            return True
        try:
            check_layer(self._path() if self.options.dense_layers else "", self.options)
        except Refused as refused:
            if strict and refused.reason.asked:
                text = refused_but_required("an eager attention call", refused.reason.text)
                raise RefusedError(text) from None
            return True
        return False

    def _path(self) -> str:
        """The path of the module that makes the call; remembered, as a recompute does not run the model."""
        modules = eager_calls.modules_on_stack()
        if modules and modules[0] not in self._paths:
            for model in modules:
                if attention_of(model) is self:
                    self._paths.update({module: path for path, module in model.named_modules()})
        return next((self._paths[module] for module in modules if module in self._paths), "")

    def _open_run(self, mask: object, hint: Hint) -> Run | None:
        """Where the video is among the keys, if a boolean mask (B, 1, 1, keys) is True for all of it. Reads
        the mask, once for as long as the same tensor comes again."""
        if type(mask) is not Tensor or mask.dtype != torch.bool or mask.device.type == "meta":
            return None
        if mask.dim() != 4 or mask.shape[1:] != (1, 1, hint.sequence):
            return None
        run, version = (hint.start, hint.start + hint.tokens), version_of(mask)
        state = (version, run)
        if version is None or self._read is None or self._read[0]() is not mask or self._read[1] != state:
            self._read = weakref.ref(mask), state, _all(mask[..., slice(*run)])
        return run if self._read[2] else None


_ARGUMENTS = ("query", "key", "value", "attn_mask")
_numbers = itertools.count()


def _all(mask: Tensor) -> bool:
    return bool(mask.all())


def _lengths(given: dict[str, Any]) -> set[int]:
    return {given[name].shape[-2] for name in ("query", "key") if given[name].dim() >= 2}


def _graph_of(run: Run | None, number: int) -> Callable[..., Tensor]:
    """The call as a function for Dynamo, which is told that the keys of `run` are seen."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if run is not None and attn_mask is not None:
            seen = attn_mask.new_ones(*attn_mask.shape[:-1], run[1] - run[0])
            attn_mask = torch.cat([attn_mask[..., : run[0]], seen, attn_mask[..., run[1] :]], -1)
        return eager_calls.original(query, key, value, attn_mask, *args, **kwargs)

    return own_code(attention, f"attention_{number}")
