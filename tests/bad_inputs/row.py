"""A row of the table of bad inputs, and the ways its input is tried: by hand and in a model's graph.

Whatever happens becomes one line of text, which must be the row's outcome to the letter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vsa_compile
from vsa_compile.backend import convert
from vsa_compile.convert.judge import Refusal
from vsa_compile.grid import Grid
from vsa_compile.ops import reference

GRID, TILE = Grid(3, 4, 5), (2, 2, 2)  # border tiles along two axes
TOKENS = GRID.tokens
EVERY_TILE = 1e-6  # a sparsity that keeps all tiles, and still takes the sparse path

COMPUTED = "computed: output and gradients equal the reference"
CONVERTED = "sparse: equals dense attention when every tile is kept"

# Relative L2 error: one rounding of the result in the low types, of sums of hundreds of terms in the wide.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}

sdpa = F.scaled_dot_product_attention


@dataclass(frozen=True)
class Row:
    """One input: what it is, how it is tried, and the text of what must come of it.

    An outcome that ends in " ..." is the beginning of an error text that is torch's own.
    """

    id: str
    given: str
    how: Callable[[], str]
    outcome: str


def happened(row: Row) -> str:
    """What came of the row's input, in the words of `outcome`."""
    try:
        return row.how()
    except Exception as error:  # the text of any error is the result; the test compares it
        return f"{type(error).__name__}: {error}"


def fits(got: str, outcome: str) -> bool:
    return got.startswith(outcome[:-3]) if outcome.endswith(" ...") else got == outcome


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arguments(**overrides: Any) -> dict[str, Any]:
    """Arguments of `vsa_compile.attention` that are right but for the overrides."""
    names = ("q", "k", "v")
    right = {name: tensor(1, 2, TOKENS, 16, seed=seed) for seed, name in enumerate(names)}
    return right | {"grid": GRID, "tile": TILE, "sparsity": 0.5} | overrides


def alike(**common: Any) -> dict[str, Any]:
    """q, k and v of one shape, dtype or device."""
    shape = common.pop("shape", (1, 2, TOKENS, 16))
    return {name: tensor(*shape, seed=seed).to(**common) for seed, name in enumerate(("q", "k", "v"))}


def by_hand(**overrides: Any) -> Callable[[], str]:
    """Calls `vsa_compile.attention`, forward and backward, and compares with the reference in fp64."""
    return lambda: judged(arguments(**overrides))


def judged(args: dict[str, Any]) -> str:
    named = {name: args[name] for name in ("q", "k", "v", "gate") if args.get(name) is not None}
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in named.values()):
        return described(vsa_compile.attention(**args))
    leaves = {name: x.detach().requires_grad_() for name, x in named.items()}
    out = vsa_compile.attention(**args | leaves)
    grads = torch.autograd.grad(out.sum(), list(leaves.values()))
    assert [grad.shape for grad in grads] == [x.shape for x in leaves.values()]
    if out.device.type == "meta" or not out.numel():
        return described(out)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    got = torch.autograd.grad(vsa_compile.attention(**args | leaves), list(leaves.values()), weights)
    exact = {name: x.detach().double().requires_grad_() for name, x in named.items()}
    wanted_out = expected(args | exact)
    wanted = torch.autograd.grad(wanted_out, list(exact.values()), weights.double())
    return verdict((out, *got), (wanted_out, *wanted), args["q"].dtype)


def expected(args: dict[str, Any]) -> Tensor:
    """The reference on the arguments of `vsa_compile.attention`."""
    start, mask = args.get("video_start", 0), args.get("key_padding_mask")
    tile = tuple(min(t, n) for t, n in zip(args["tile"], args["grid"], strict=True))
    same = {name: args[name] for name in ("q", "k", "v", "sparsity", "gate", "scale") if name in args}
    grid = Grid(*args["grid"])
    return reference.attention(**same, grid=grid, tile=tile, q_start=start, kv_start=start, key_padding=mask)


def described(out: Tensor) -> str:
    if out.device.type == "meta":
        return f"a meta tensor of shape {tuple(out.shape)}"
    return f"an empty tensor of shape {tuple(out.shape)}" if not out.numel() else "computed"


def relative(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-300))


def verdict(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], dtype: torch.dtype) -> str:
    """COMPUTED, or what is wrong: each is held to its norm, or to a tenth of the largest gradient's.

    The second is for gradients that are zero in exact arithmetic, of which rounding is all there is.
    """
    if any(x.dtype != dtype or x.shape != y.shape for x, y in zip(got, wanted, strict=True)):
        return f"dtypes {[x.dtype for x in got]}, shapes {[tuple(x.shape) for x in got]}"
    norms = [float(x.detach().norm()) for x in wanted]
    floors = [norms[0], *[max(norm, 0.1 * max(norms[1:])) for norm in norms[1:]]]
    pairs = zip(got, wanted, floors, strict=True)
    errors = [float((x.detach().double() - y.detach()).norm()) / floor for x, y, floor in pairs]
    return COMPUTED if max(errors) <= BOUNDS[dtype] else f"relative errors {errors}"


class Video(nn.Module):
    """(B, C, frames, rows, cols) -> what `attend` makes of its (B, tokens, C), a 1x1x1 patchify."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, latents: Tensor, *rest: Any) -> Tensor:
        return self.attend(latents.flatten(2).transpose(1, 2), *rest)


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def itself(x: Tensor, **keywords: Any) -> Tensor:
    """Self-attention of tokens."""
    return sdpa(heads(x), heads(x), heads(x), **keywords)


def in_graph(
    attend: Callable[..., Tensor], *rest: Any, latents: Tensor | None = None, **options: Any
) -> Callable[[], str]:
    """Compiles a model up to what Inductor would get, runs that, and compares with the model itself."""
    x = tensor(2, 32, *GRID) if latents is None else latents
    return lambda: compiled(Video(attend), (x, *rest), options)


def compiled(model: Callable[..., Tensor], args: tuple, options: dict[str, Any]) -> str:
    found: list[Any] = []
    settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": EVERY_TILE, "tile": TILE} | options)

    def spy(module: torch.fx.GraphModule, _: Any) -> Callable:
        found.extend(convert(module, settings))
        return module.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    wanted = model(*args)
    torch.manual_seed(0)
    got = torch.compile(model, backend=spy)(*args)
    if any(isinstance(decision, Refusal) for decision in found):
        (refusal,) = found
        same = torch.equal(got.nan_to_num(), wanted.nan_to_num()) and torch.equal(got.isnan(), wanted.isnan())
        return f"dense: {refusal.reason.text}" if same else "dense, and another result than without us"
    if not found:
        return "dense: torch compiles nothing here" if torch.equal(got, wanted) else "not the eager result"
    error = relative(got, wanted)
    bound = BOUNDS[args[0].dtype]
    return CONVERTED if got.shape == wanted.shape and error <= bound else f"sparse: relative error {error}"


def failing_itself(attend: Callable[..., Tensor]) -> Callable[[], str]:
    """A model that torch refuses without us, too: tells torch's own error."""

    def how() -> str:
        model, x = Video(attend), tensor(2, 32, *GRID)
        try:
            torch.compile(model, backend="vsa")(x)
        except torch._dynamo.exc.TorchRuntimeError:
            model(x)
        return "computed"

    return how
