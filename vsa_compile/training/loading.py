"""Loading gates from checkpoints that have none, or that keep them under the names of other projects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .texts import gates_dropped

NAME = "to_gate_compress"


class GateLoader:
    """A hook before the state of a gate's owner is loaded: absent gates are zero.

    projection: the path of the query projection inside the owner, "" if that is the owner. A checkpoint may
    keep the gate next to it, on the attention module, as FastVideo does for LTX-2 and MiniMax-H3.
    """

    def __init__(self, projection: str) -> None:
        self.projection = projection

    def __call__(self, owner: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        for name, parameter in getattr(owner, NAME).named_parameters():
            key = f"{prefix}{NAME}.{name}"
            beside = f"{prefix}{self.beside}.{name}"
            if key not in state_dict and beside in state_dict:
                state_dict[key] = state_dict.pop(beside)
            elif key not in state_dict:
                state_dict[key] = self._zeros(parameter, state_dict, prefix)

    @property
    def beside(self) -> str:
        """The name of a gate on the module that contains the projection."""
        return ".".join([*self.projection.split(".")[:-1], NAME])

    def _zeros(self, parameter: Tensor, state_dict: Mapping[str, object], prefix: str) -> Tensor:
        """Zeros like the parameter. For a parameter on meta, where `assign` would leave it: zeros like what
        the checkpoint has of the projection, which is no weight if weight_norm or the like compute that."""
        if not parameter.is_meta:
            return torch.zeros_like(parameter)
        at = f"{prefix}{self.projection}." if self.projection else prefix
        saved = (x for key, x in state_dict.items() if key.startswith(at))
        real = (x for x in saved if isinstance(x, Tensor) and x.is_floating_point() and not x.is_meta)
        like = next(real, torch.zeros(0, dtype=parameter.dtype, device="cpu"))
        return torch.zeros(parameter.shape, dtype=like.dtype, device=like.device)


class UnclaimedGates:
    """A hook before the state of a whole model is loaded: warns of gates in the checkpoint that the model has
    not, which load_state_dict(strict=False) would drop silently."""

    def __call__(self, model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        taken = set()
        for path, module in model.named_modules():
            at = f"{prefix}{path}." if path else prefix
            for hook in load_hooks(module).values():
                if isinstance(hook, GateLoader):
                    taken |= {f"{at}{NAME}", f"{at}{hook.beside}"}
        gates = {key.rpartition(".")[0] for key in state_dict if f".{NAME}." in f".{key}"}
        if gates - taken:
            warnings.warn(gates_dropped(sorted(gates - taken), sorted(taken)), stacklevel=2)


def load_hooks(module: nn.Module) -> dict[int, object]:
    """The hooks that run before a module's state is loaded, by key."""
    return {key: getattr(hook, "hook", hook) for key, hook in module._load_state_dict_pre_hooks.items()}
