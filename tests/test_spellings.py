"""Every way to write attention: found and made sparse, or refused with a reason; never passed over unseen."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_output
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.autograd import profiler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention as renamed
from torch.utils.checkpoint import checkpoint

import vsa_compile
from vsa_compile.convert.judge import Conversion

sdpa = F.scaled_dot_product_attention
GRID = (3, 4, 5)
torch.manual_seed(0)
QKV, MHA, DIFFUSERS = (
    nn.Linear(16, 48),
    nn.MultiheadAttention(16, 4, batch_first=True),
    Attention(16, heads=4, dim_head=4),
)
ENCODER = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)


def heads(x: Tensor) -> Tensor:
    """(B, N, 16) -> (B, 4, N, 4)."""
    return x.unflatten(-1, (4, 4)).transpose(1, 2)


def qkv(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads(part) for part in QKV(x).chunk(3, dim=-1))


def fused(x: Tensor) -> Tensor:
    q, k, v = QKV(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    return sdpa(q, k, v)


def permuted(x: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (4, 4)).permute(0, 2, 1, 3) for part in QKV(x).chunk(3, dim=-1))
    return sdpa(q, k, v).permute(0, 2, 1, 3)


def inside(context: Callable) -> Callable:
    def attend(x: Tensor) -> Tensor:
        with context():
            return sdpa(*qkv(x))

    return attend


def checkpointed(reentrant: bool) -> Callable:
    return lambda x: checkpoint(lambda y: sdpa(*qkv(y)), x, use_reentrant=reentrant)


def looped(x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + sdpa(*qkv(x)).transpose(1, 2).flatten(2)
    return x


def nested(x: Tensor) -> Tensor:
    def outer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (lambda: sdpa(q, k, v))()

    return outer(*qkv(x))


def compiled_inside(x: Tensor) -> Tensor:
    return torch.compile(lambda y: sdpa(*qkv(y)))(x)


def dispatched(x: Tensor) -> Tensor:
    return dispatch_attention_fn(*(part.unflatten(-1, (4, 4)) for part in QKV(x).chunk(3, dim=-1)))


def conditional(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda y: sdpa(*qkv(y)), lambda y: sdpa(*qkv(2 * y)), (x,))


@torch.compiler.disable
def outside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v)


def after_a_break(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return sdpa(*qkv(x))


def starred(x: Tensor) -> Tensor:
    positional, by_name = qkv(x), {"dropout_p": 0.0, "scale": 0.3}
    return sdpa(*positional, **by_name)


def keywords(x: Tensor) -> Tensor:
    q, k, v = qkv(x)
    return sdpa(value=v, query=q, key=k, scale=0.4)


# Every spelling, and what becomes of each call that it makes.
SPELLINGS = {
    "positional": (lambda x: sdpa(*qkv(x), None, 0.0, False), ["sparse"]),
    "keywords": (keywords, ["sparse"]),
    "mixed": (lambda x: sdpa(qkv(x)[0], qkv(x)[1], value=qkv(x)[2], is_causal=False), ["sparse"]),
    "star": (starred, ["sparse"]),
    "renamed": (lambda x: renamed(*qkv(x)), ["sparse"]),
    "builtin": (lambda x: torch._C._nn.scaled_dot_product_attention(*qkv(x)), ["sparse"]),
    "aten": (lambda x: torch.ops.aten.scaled_dot_product_attention(*qkv(x)), ["sparse"]),
    "aten-default": (lambda x: torch.ops.aten.scaled_dot_product_attention.default(*qkv(x)), ["sparse"]),
    "partial": (lambda x: functools.partial(sdpa, dropout_p=0.0)(*qkv(x)), ["sparse"]),
    "looked-up": (lambda x: getattr(F, "scaled_dot_product_" + "attention")(*qkv(x)), ["sparse"]),
    "fused": (fused, ["sparse"]),
    "permuted": (permuted, ["sparse"]),
    "looped": (looped, ["sparse"] * 3),
    "nested": (nested, ["sparse"]),
    "compiled-inside": (compiled_inside, ["sparse"]),
    "checkpointed": (checkpointed(False), ["sparse"]),
    "checkpointed-reentrant": (checkpointed(True), ["sparse"]),
    "no-grad": (inside(torch.no_grad), ["sparse"]),
    "inference-mode": (inside(torch.inference_mode), ["sparse"]),
    "autocast": (inside(lambda: torch.autocast("cpu", torch.bfloat16)), ["sparse"]),
    "sdpa-kernel": (inside(lambda: sdpa_kernel(SDPBackend.MATH)), ["sparse"]),
    "diffusers-dispatch": (dispatched, ["sparse"]),
    "diffusers-attention": (DIFFUSERS, ["sparse"]),
    "three-dims": (lambda x: sdpa(x, x, x), ["shape"]),
    "vmapped": (lambda x: torch.vmap(lambda y: sdpa(y, y, y))(heads(x)), ["func-transform"]),
    "conditional": (conditional, ["higher-order"]),
    "after-a-break": (after_a_break, ["unknown-grid"]),
    "causal": (lambda x: sdpa(*qkv(x), None, 0.0, True), ["causal"]),
    # Not compiled at all, by the user's own wish; nor is there anything to refuse.
    "outside": (lambda x: outside(*qkv(x)), []),
    # Not SDPA.
    "flex": (lambda x: flex_attention(*[heads(x)] * 3), []),
    "by-hand": (lambda x: (heads(x) @ heads(x).mT).softmax(-1) @ heads(x), []),
    # Opaque to Dynamo.
    "module": (lambda x: MHA(x, x, x, need_weights=False)[0], ["whole-layer"]),
    "encoder-layer": (ENCODER, ["whole-layer"]),
}
# A conditional runs one of its two calls; what is disabled runs a call that no backend can see.
RUN_MORE_OR_LESS = {"conditional": -1, "outside": 1}


class Video(nn.Module):
    """(1, 16, frames, rows, cols) -> its tokens -> `attend`."""

    def __init__(self, attend: Callable) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, latents: Tensor) -> Tensor:
        return self.attend(latents.flatten(2).transpose(1, 2))


def calls_that_run(model: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """The SDPA calls of an eager run, as torch's own profiler sees them below every spelling."""
    name = "aten::scaled_dot_product_attention"
    with torch.compiler.set_stance("force_eager"), profiler.profile() as profile:
        out = model(x)
    # Autocast runs an operator through itself.
    runs = [e for e in profile.function_events if e.name == name]
    return sum(e.cpu_parent is None or e.cpu_parent.name != name for e in runs), out.detach()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found_or_refused(spelling: str) -> None:
    attend, fates = SPELLINGS[spelling]
    model, seen = Video(attend), []
    x = torch.randn(1, 16, *GRID, generator=torch.Generator().manual_seed(1))
    count, wanted = calls_that_run(model, x)

    def convert(module, example_inputs):
        seen.extend(
            vsa_compile.backend.convert(module, vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6}))
        )
        module.graph.lint()
        return module.forward

    got = torch.compile(model, backend=convert)(x)
    assert count == len(seen) + RUN_MORE_OR_LESS.get(spelling, 0)
    assert {"sparse" if isinstance(one, Conversion) else one.reason.slug for one in seen} == set(fates)
    assert len(seen) == len(fates) - min(RUN_MORE_OR_LESS.get(spelling, 0), 0)
    assert_same_output(got.detach(), wanted, bound=1e-2 if wanted.dtype == torch.bfloat16 else 1e-5)
