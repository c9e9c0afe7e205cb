"""X10-X15: types, memory, and autograd's views of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import vsa_compile
from vsa_compile.ops import reference

from .row import (
    COMPUTED,
    CONVERTED,
    GRID,
    TILE,
    TOKENS,
    Row,
    alike,
    arguments,
    by_hand,
    heads,
    in_graph,
    itself,
    relative,
    sdpa,
    tensor,
)

SAME = "They must be the same; call .to() on the odd one."
ALLOWED = "but it must be float32, bfloat16, float16 or float64. Convert it with .to()."
CHANGED = (
    "RuntimeError: one of the variables needed for gradient computation has been modified by an inplace ..."
)


def under_autocast(**overrides: Tensor) -> str:
    """q, k and v of several types under autocast, against all of them in bf16."""
    args = arguments(**overrides)
    with torch.autocast("cpu", torch.bfloat16):
        got = vsa_compile.attention(**args)
    wanted = vsa_compile.attention(**args | {name: args[name].bfloat16() for name in ("q", "k", "v")})
    return "computed in bfloat16" if torch.equal(got, wanted) else "not as autocast does it"


TYPES = (
    Row(
        "X10",
        "k in bfloat16",
        by_hand(k=tensor(1, 2, TOKENS, 16).bfloat16()),
        f"ArgumentError: dtypes differ: q torch.float32, k torch.bfloat16, v torch.float32. {SAME}",
    ),
    Row(
        "X10",
        "a gate in float16",
        by_hand(gate=tensor(1, 2, TOKENS, 16).half()),
        "ArgumentError: dtypes differ: q torch.float32, k torch.float32, v torch.float32, gate "
        "torch.float16. " + SAME,
    ),
    Row(
        "X10",
        "k in bfloat16, under autocast",
        lambda: under_autocast(k=tensor(1, 2, TOKENS, 16).bfloat16()),
        "computed in bfloat16",
    ),
    Row(
        "X10",
        "k in float64, which autocast leaves alone",
        lambda: under_autocast(k=tensor(1, 2, TOKENS, 16).double()),
        f"ArgumentError: dtypes differ: q torch.float32, k torch.float64, v torch.float32. {SAME}",
    ),
    Row(
        "X10",
        "k on another device",
        by_hand(k=torch.empty(1, 2, TOKENS, 16, device="meta")),
        f"ArgumentError: devices differ: q cpu, k meta, v cpu. {SAME}",
    ),
    Row(
        "X10",
        "a mask on another device",
        by_hand(key_padding_mask=torch.ones(1, TOKENS, dtype=torch.bool, device="meta")),
        f"ArgumentError: devices differ: q cpu, k cpu, v cpu, key_padding_mask meta. {SAME}",
    ),
    *(
        Row("X11", str(dtype).removeprefix("torch."), by_hand(**alike(dtype=dtype)), COMPUTED)
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    ),
    *(
        Row(
            "X11",
            str(dtype).removeprefix("torch."),
            by_hand(**alike(dtype=dtype)),
            f"ArgumentError: q.dtype is {dtype}, {ALLOWED}",
        )
        for dtype in (
            torch.float8_e4m3fn,
            torch.float8_e5m2,
            torch.int8,
            torch.int64,
            torch.bool,
            torch.complex64,
        )
    ),
    *(
        Row(
            "X11",
            f"a model in {str(dtype).removeprefix('torch.')}",
            in_graph(itself, latents=tensor(2, 32, *GRID, dtype=dtype)),
            CONVERTED,
        )
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    ),
)


def overlapping(seed: int, *strides: int) -> Tensor:
    return tensor(4 * TOKENS * 16, seed=seed).as_strided((1, 2, TOKENS, 16), (0, *strides))


def misaligned(dtype: torch.dtype) -> dict[str, Tensor]:
    """q, k and v that start 1, 2 and 3 elements behind their allocation's first."""
    flat = [tensor(TOKENS * 32 + 3, seed=seed).to(dtype) for seed in range(3)]
    parts = [x[i + 1 : i + 1 + TOKENS * 32].view(1, 2, TOKENS, 16) for i, x in enumerate(flat)]
    return dict(zip(("q", "k", "v"), parts, strict=True))


def far_apart() -> str:
    """Two batches of k that lie 2^31 elements apart; the untouched pages between cost no memory."""
    args = arguments(**alike(shape=(2, 2, TOKENS, 16), dtype=torch.bfloat16))
    k = args["k"]
    base = torch.empty(2**31 + k[0].numel(), dtype=k.dtype)
    far = base.as_strided(k.shape, (2**31, *k.stride()[1:])).copy_(k)
    equal = torch.equal(vsa_compile.attention(**args | {"k": far}), vsa_compile.attention(**args))
    return "computed: the same bits as side by side" if equal else "other bits"


MEMORY = (
    Row(
        "X12",
        "a last dimension that is not contiguous",
        by_hand(**{name: tensor(1, 2, 16, TOKENS, seed=s).mT for s, name in enumerate(("q", "k", "v"))}),
        COMPUTED,
    ),
    Row(
        "X12",
        "stride 0: one head of k expanded over two, one token of v over all",
        by_hand(
            k=tensor(1, 1, TOKENS, 16, seed=1).expand(1, 2, -1, -1),
            v=tensor(1, 2, 1, 16, seed=2).expand(1, 2, TOKENS, 16),
        ),
        COMPUTED,
    ),
    Row(
        "X12",
        "every second column, token and head",
        by_hand(
            q=tensor(1, 2, TOKENS, 32)[..., ::2],
            k=tensor(1, 2, 2 * TOKENS, 16, seed=1)[:, :, ::2],
            v=tensor(1, 4, TOKENS, 16, seed=2)[:, ::2],
        ),
        COMPUTED,
    ),
    Row(
        "X12",
        "rows that overlap in memory (as_strided)",
        by_hand(q=overlapping(0, 16, 8, 1), k=overlapping(1, 3, 5, 2), v=overlapping(2, 1, 1, 1)),
        COMPUTED,
    ),
    Row(
        "X12",
        "a model that expands one batch of q, k and v over two",
        in_graph(lambda x: sdpa(*[heads(x[:1].expand(2, -1, -1))] * 3)),
        CONVERTED,
    ),
    *(
        Row("X13", f"{name} that starts off any 16-byte boundary", by_hand(**misaligned(dtype)), COMPUTED)
        for name, dtype in (
            ("float32", torch.float32),
            ("bfloat16", torch.bfloat16),
            ("float16", torch.float16),
        )
    ),
    Row("X14", "batches 2^31 elements apart", far_apart, "computed: the same bits as side by side"),
    Row(
        "X14",
        "a stride of 2^40 on a dimension of size 1",
        by_hand(q=tensor(1, 2, TOKENS, 16).as_strided((1, 2, TOKENS, 16), (2**40, TOKENS * 16, 16, 1))),
        COMPUTED,
    ),
    Row(
        "X14",
        "meta tensors of more than 2^31 elements, forward and backward",
        by_hand(
            **{name: torch.empty(4, 40, 160_000, 128, device="meta") for name in ("q", "k", "v")},
            grid=(10, 100, 160),
        ),
        "a meta tensor of shape (4, 40, 160000, 128)",
    ),
)


def changed_before_backward(what: str, **keywords: float) -> Callable[[], str]:
    """Adds 1 to an input, or to the output, between forward and backward."""

    def how() -> str:
        args = arguments(**keywords)
        named = {name: args[name].clone().requires_grad_() * 1 for name in ("q", "k", "v")}
        named["out"] = vsa_compile.attention(**args | named)
        with torch.no_grad():
            named[what].add_(1)
        named["out"].sum().backward()
        return "computed"

    return how


def through_views() -> str:
    """q, k and v are views of one leaf: its gradient is the sum of theirs."""
    fused = tensor(1, TOKENS, 2, 48)
    leaf = fused.clone().requires_grad_()
    exact = fused.double().requires_grad_()
    outs = [
        attend(**dict(zip(("q", "k", "v"), x.transpose(1, 2).split(16, -1), strict=True)))
        for attend, x in (
            (lambda **qkv: vsa_compile.attention(**arguments(**qkv)), leaf),
            (lambda **qkv: reference.attention(**qkv, grid=GRID, tile=TILE, sparsity=0.5), exact),
        )
    ]
    for out in outs:
        out.square().sum().backward()
    assert leaf.grad is not None
    assert exact.grad is not None
    error = max(relative(outs[0], outs[1]), relative(leaf.grad, exact.grad))
    return COMPUTED if error <= 1e-5 else f"relative error {error}"


AUTOGRAD = (
    *(
        Row(
            "X15",
            f"{what} changed in place between forward and backward",
            changed_before_backward(what),
            CHANGED,
        )
        for what in ("q", "k", "v", "out")
    ),
    Row("X15", "q, k and v that are views of one tensor which needs a gradient", through_views, COMPUTED),
)


ROWS = (*TYPES, *MEMORY, *AUTOGRAD)
