"""One spelling for each layout rule: what keeps the tokens' raster order converts, what loses it does not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_output
from converting import converting
from torch import Tensor, nn

import vsa_compile
from vsa_compile.convert.judge import Conversion

GRID = (5, 6, 7)
TOKENS = 210
sdpa = F.scaled_dot_product_attention


def heads(x: Tensor) -> Tensor:
    """(B, N, 16) -> (B, 4, N, 4)."""
    return x.unflatten(-1, (4, -1)).transpose(1, 2)


class Video(nn.Module):
    """(B, 16, frames, rows, cols) -> its tokens (B, N, 16) -> `attend`."""

    def __init__(self, attend: Callable) -> None:
        super().__init__()
        self.attend = attend
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        self.grid = tuple(latents.shape[2:])
        return self.attend(self, latents.flatten(2).transpose(1, 2), *rest)


def run(attend: Callable, *rest: Tensor, dynamic: bool = False) -> list[bool]:
    """Which attention calls convert; the converted graph must compute what the model does."""
    fates = []

    def convert(module, example_inputs):
        settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6})
        fates.extend(hasattr(one, "grid") for one in vsa_compile.backend.convert(module, settings))
        return module.forward

    latents = torch.randn(2, 16, *GRID, generator=torch.Generator().manual_seed(0))
    model = Video(attend)
    if dynamic:  # frames, rows and cols; the width is the model's own
        torch._dynamo.maybe_mark_dynamic(latents, [2, 3, 4])
    with torch.no_grad():
        got = torch.compile(model, backend=convert)(latents, *rest)
        assert_same_output(got, model(latents, *rest))
    return fates


def self_attention(x: Tensor) -> Tensor:
    return sdpa(heads(x), heads(x), heads(x))


def pictures(module: "Video", x: Tensor) -> Tensor:
    """(B, N, 16) -> (B, frames, 16, rows, cols)."""
    return x.unflatten(1, module.grid).permute(0, 1, 4, 2, 3)


# (module, tokens (B, N, 16)) -> tokens, still all of them and in their order; module.grid is their grid.
ORDER_KEPT = {
    "mT": lambda m, x: x.mT.contiguous().mT,
    "movedim": lambda m, x: x.movedim(1, 2).movedim(-1, 1),
    "movedim of several": lambda m, x: x.movedim((0, 1), (1, 0)).movedim((1, 0), (0, 1)),
    "transposed twice": lambda m, x: x.transpose(1, 2).transpose(-1, -2),
    "stack and select": lambda m, x: torch.stack([x, x + 1]).select(0, 1),
    "stack and index": lambda m, x: torch.stack([x, x + 1], dim=2)[:, :, 0],
    "unsqueeze and squeeze": lambda m, x: x[:, None, :, None].squeeze(1).squeeze(2),
    "narrow of channels": lambda m, x: torch.cat([x, x], dim=-1).narrow(-1, 8, 16),
    "chunk of channels": lambda m, x: torch.cat([x, x], dim=-1).chunk(2, dim=-1)[1],
    "unbind": lambda m, x: torch.stack([x, x + 1]).unbind(0)[1],
    "text put before and taken off": lambda m, x: torch.cat([x[:, :9], x], dim=1)[:, 9:],
    "padded and cut": lambda m, x: F.pad(x, (0, 0, 3, 2))[:, 3:-2],
    "narrow of padded": lambda m, x: F.pad(x, (0, 0, 0, 4)).narrow(1, 0, x.shape[1]),
    "split of padded": lambda m, x: F.pad(x, (0, 0, 0, 4)).split([x.shape[1], 4], dim=1)[0],
    "einsum": lambda m, x: torch.einsum("bnc,cd->bnd", x, m.weight),
    "einsum with dots": lambda m, x: torch.einsum("...c,cd->...d", x, m.weight),
    "einsum of matrices": lambda m, x: torch.einsum("...ij, ...j -> ...i", m.weight[None], x),
    "einsum of two ranks": lambda m, x: torch.einsum("...ij,...j->...i", m.weight[None, None, None], x)[0],
    "einsum of a list": lambda m, x: torch.einsum("bnc,dc->bnd", [x, m.weight]),
    "matmul": lambda m, x: x @ m.weight,
    "matmul from the left": lambda m, x: (m.weight @ x.mT).mT,
    "baddbmm": lambda m, x: torch.bmm(x, m.weight.expand(2, -1, -1)),
    "expand": lambda m, x: x[:, None].expand(-1, 3, -1, -1)[:, 2],
    "repeat of channels": lambda m, x: x.repeat(1, 1, 2)[..., :16],
    "mean of heads": lambda m, x: torch.stack([x, x]).mean(0),
    "largest of two": lambda m, x: torch.stack([x, -x]).amax(dim=0),
    "where": lambda m, x: torch.where(x > 0, x, 0.1 * x),
    "layer norm": lambda m, x: F.layer_norm(x, (16,)),
    "adjoint": lambda m, x: x.adjoint().adjoint(),
    "stack along an axis": lambda m, x: torch.stack([x, x + 1], axis=2)[:, :, 0],
    "hstack": lambda m, x: torch.hstack([x[:, :9], x])[:, 9:],
    "dstack and dsplit": lambda m, x: torch.dstack([x, x]).dsplit(2)[1],
    "frame after frame": lambda m, x: torch.cat(x.unflatten(1, m.grid).flatten(2, 3).unbind(1), 1),
    "unfold": lambda m, x: x.unfold(2, 4, 4).flatten(2),
    "pixels": lambda m, x: (
        F.pixel_unshuffle(F.pixel_shuffle(pictures(m, x), 2), 2).permute(0, 1, 3, 4, 2).flatten(1, 3)
    ),
    "back to the grid": lambda m, x: x.unflatten(1, m.grid).permute(0, 4, 1, 2, 3).flatten(2).mT,
    "frames apart": lambda m, x: x.unflatten(1, (m.grid[0], -1)).flatten(0, 1).reshape(x.shape),
}
ORDER_LOST = {
    "rolled": lambda m, x: x.roll(1, 1),
    "flipped": lambda m, x: x.flip(1),
    "sorted": lambda m, x: x.sort(1).values,
    "shuffled": lambda m, x: x[:, torch.arange(TOKENS - 1, -1, -1)],
    "rows before frames": lambda m, x: x.unflatten(1, GRID).transpose(1, 2).flatten(1, 3),
    "cols first": lambda m, x: x.unflatten(1, GRID).movedim(3, 1).flatten(1, 3),
    "another raster of the channels": lambda m, x: x.reshape(2, 16, TOKENS).mT,
    "part of it": lambda m, x: x[:, :-1],
    "every second": lambda m, x: x[:, ::2],
    "sorted along an axis": lambda m, x: x.sort(axis=1).values,
    "halves swapped along an axis": lambda m, x: torch.cat([x[:, 105:], x[:, :105]], axis=1),
    "looked up": lambda m, x: torch.stack([F.embedding(torch.arange(TOKENS - 1, -1, -1), one) for one in x]),
    "frames backwards": lambda m, x: torch.cat(x.unflatten(1, m.grid).flatten(2, 3).unbind(1)[::-1], 1),
    "rows of pixels": lambda m, x: F.pixel_shuffle(pictures(m, x), 2).flatten(1).reshape(x.shape),
    "video twice, half of it": lambda m, x: torch.cat([x, x], dim=1)[:, 5 : TOKENS + 5],
}


@pytest.mark.parametrize("spelling", ORDER_KEPT)
@pytest.mark.parametrize(
    "dynamic",
    [
        pytest.param(False, id="static"),
        pytest.param(True, id="dynamic", marks=[pytest.mark.slow, pytest.mark.seconds]),
    ],
)
def test_tokens_in_order_convert(spelling: str, dynamic: bool):
    change = ORDER_KEPT[spelling]
    assert run(lambda m, x: self_attention(change(m, x)), dynamic=dynamic) == [True]


@pytest.mark.parametrize("spelling", ORDER_LOST)
def test_tokens_out_of_order_stay_dense(spelling: str):
    change = ORDER_LOST[spelling]
    assert run(lambda m, x: self_attention(change(m, x))) == [False]


@pytest.mark.parametrize("spelling", ["rolled", "flipped", "sorted", "shuffled", "rows before frames"])
def test_keys_in_another_order_than_queries_stay_dense(spelling: str):
    change = ORDER_LOST[spelling]
    assert run(lambda m, x: sdpa(heads(x), heads(change(m, x)), heads(change(m, x)))) == [False]


def test_one_table_of_positions_does_not_make_two_videos_one():
    """Each video attends to itself; attention from one to the other is cross-attention."""

    def attend(m, x, other):
        y, at = other.flatten(2).transpose(1, 2), torch.linspace(0, 1, TOKENS)[:, None]
        q, k, far = (heads(t) * at.cos() for t in (x, x, y))
        return sdpa(q, k, heads(x)) + sdpa(q, far, heads(y))

    assert run(attend, torch.randn(2, 16, *GRID)) == [True, False]


@pytest.mark.parametrize("first", [True, False])
def test_of_several_videos_in_a_sequence_the_longest_is_sparse(first: bool):
    """The others, history frames say, are dense keys."""

    class WithHistory(nn.Module):
        def forward(self, latents: Tensor, history: Tensor) -> Tensor:
            parts = [x.flatten(2).transpose(1, 2) for x in (latents, history)]
            return self_attention(torch.cat(parts if first else parts[::-1], dim=1))

    inputs = torch.randn(2, 16, *GRID), torch.randn(2, 16, 2, 3, 4)
    (site,) = vsa_compile.explain(WithHistory(), *inputs, options={"min_tokens": 0}).sites
    assert site.converted, site.reason
    assert site.grid == GRID
    assert site.segments == (("video 5x6x7", "video 2x3x4") if first else ("video 2x3x4", "video 5x6x7"))


def test_a_result_that_is_viewed_keeps_the_strides_it_had():
    assert run(lambda m, x: self_attention(x).view(2, 4, TOKENS * 4)) == [True]


def test_a_size_less_itself_is_a_number():
    """VACE pads its tokens by one size less another; it has nothing of a tensor less itself."""

    def attend(_: nn.Module, x: Tensor) -> Tensor:
        length = x.shape[1]
        return self_attention(torch.cat([x, x.new_zeros(2, length - length, 16)], dim=1))

    graphs: list = []
    model = torch.compile(Video(attend), backend=converting(graphs, min_tokens=0), dynamic=True)
    model(torch.randn(2, 16, *GRID))
    assert [[isinstance(one, Conversion) for one in graph] for graph in graphs] == [[True]]


def test_grids_that_are_sums_and_products_of_input_sizes():
    class Padded(nn.Module):
        """One frame more than the latent has, and twice its rows."""

        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.ConvTranspose3d(8, 16, (2, 2, 1), stride=(1, 2, 1))

        def forward(self, latents: Tensor) -> Tensor:
            return self_attention(self.patch(latents).flatten(2).transpose(1, 2))

    (site,) = vsa_compile.explain(Padded(), torch.randn(2, 8, 4, 3, 7), options={"min_tokens": 0}).sites
    assert site.converted, site.reason
    assert site.grid == (5, 6, 7)

    def convert(module, example_inputs):
        (one,) = vsa_compile.backend.convert(module, vsa_compile.Options.read({"min_tokens": 0}))
        assert hasattr(one, "grid"), one.reason
        return module.forward

    with torch.no_grad():
        torch.compile(Padded(), backend=convert, dynamic=True)(torch.randn(2, 8, 4, 3, 7))


# --- Masks over [video | 9 other keys], (B, 219): what they say of the video is provable, or not ------

PROVED = {
    "cat": lambda text: F.pad(text, (TOKENS, 0), value=True),
    "not zeros": lambda text: torch.cat([~torch.zeros(2, TOKENS, dtype=torch.bool), text], dim=1),
    "logical_not": lambda text: torch.cat([torch.zeros(2, TOKENS).bool().logical_not(), text], dim=1),
    "full": lambda text: torch.cat([torch.full((2, TOKENS), True), text], dim=1),
    "new_full": lambda text: torch.cat([text.new_full((2, TOKENS), True), text], dim=1),
    "new_ones": lambda text: torch.cat([text.new_ones(2, TOKENS), text], dim=1),
    "and": lambda text: PROVED["cat"](text) & PROVED["full"](text),
    "or": lambda text: PROVED["cat"](text) | F.pad(text, (TOKENS, 0), value=False),
    "not or": lambda text: ~(~PROVED["cat"](text) | ~PROVED["full"](text)),
    "masked_fill": lambda text: PROVED["cat"](text).masked_fill(PROVED["video"](text), True),
    "ones filled outside": lambda text: torch.ones(2, TOKENS + 9).bool().masked_fill(
        ~PROVED["cat"](text), False
    ),
    "video": lambda text: (torch.arange(TOKENS + 9) < TOKENS).expand(2, -1) | F.pad(text, (TOKENS, 0)),
    "turned": lambda text: (TOKENS + text.sum(-1, keepdim=True)) > torch.arange(TOKENS + 9),
    "lengths": lambda text: torch.arange(TOKENS + 9) < (text.sum(-1, keepdim=True) + TOKENS),
    "ints": lambda text: torch.cat([torch.ones(2, TOKENS, dtype=torch.int64), text.long()], dim=1).bool(),
    "copied": lambda text: copied_into(torch.ones(2, TOKENS + 9, dtype=torch.bool), text),
    "above": lambda text: torch.cat([torch.ones(2, TOKENS), text.float()], dim=1) > 0.5,
    "at least": lambda text: torch.cat([torch.ones(2, TOKENS).int(), text.int()], dim=1) >= 1,
    "hstack": lambda text: torch.hstack([torch.ones(2, TOKENS, dtype=torch.bool), text]),
    "cat along an axis": lambda text: torch.cat([torch.ones(2, TOKENS, dtype=torch.bool), text], axis=1),
    "clamped": lambda text: torch.arange(TOKENS + 9)
    < (text.sum(-1, keepdim=True) + TOKENS).clamp(max=TOKENS + 9),
    "pieces": lambda text: torch.cat([torch.ones(2, 100), torch.ones(2, 110), text.float()], dim=1).bool(),
}  # fmt: skip


def copied_into(mask: Tensor, text: Tensor) -> Tensor:
    mask[:, TOKENS:].copy_(text)
    return mask


UNPROVED = {
    "from outside": lambda text, mask: mask,
    "zeros": lambda text, mask: F.pad(text, (TOKENS, 0), value=False),
    "and with something": lambda text, mask: PROVED["cat"](text) & mask,
    "or of nothings": lambda text, mask: F.pad(text, (TOKENS, 0), value=False) | mask,
    "a hole": lambda text, mask: torch.cat(
        [torch.ones(2, 100), torch.zeros(2, 1), torch.ones(2, 109), text.float()], dim=1
    ).bool(),
    "too short": lambda text, mask: torch.cat([torch.ones(2, TOKENS - 1).bool(), mask[:, :1], text], dim=1),
    "filled": lambda text, mask: PROVED["cat"](text).masked_fill(mask, False),
    "lengths": lambda text, mask: torch.arange(TOKENS + 9) < (text.sum(-1, keepdim=True) + TOKENS - 1),
    "clamped": lambda text, mask: torch.arange(TOKENS + 9)
    < (text.sum(-1, keepdim=True) + TOKENS).clamp(max=TOKENS - 1),
    "copied": lambda text, mask: copied_into(mask, text),
    "half of it copied": lambda text, mask: torch.stack(
        [copied_into(PROVED["cat"](text), text)[0], copied_into(mask, text)[1]]
    ),
    "not": lambda text, mask: ~PROVED["cat"](text),
}  # fmt: skip


def masked(make: Callable, *given: Tensor) -> list[bool]:
    def attend(m, x, text, *more):
        joint = torch.cat([x, x[:, :9]], dim=1)
        seen = make(text, *more)[:, None, None, :]
        return sdpa(heads(joint), heads(joint), heads(joint), attn_mask=seen)

    return run(attend, *given)


@pytest.mark.no_cover
@pytest.mark.parametrize("spelling", PROVED)
def test_masks_that_leave_the_video_alone_convert(spelling: str):
    text = torch.arange(9) < torch.tensor([[4], [7]])
    assert masked(PROVED[spelling], text) == [True]


@pytest.mark.parametrize("spelling", UNPROVED)
def test_masks_that_may_hide_video_stay_dense(spelling: str):
    text = torch.arange(9) < torch.tensor([[4], [7]])
    mask = torch.rand(2, TOKENS + 9, generator=torch.Generator().manual_seed(1)) < 0.9
    assert masked(UNPROVED[spelling], text, mask) == [False]


def test_a_scale_that_is_an_argument_is_guarded():
    """Under dynamic=True whole numbers and fractions are values of the graph."""

    def attend(module: Video, x: Tensor, scale: float) -> Tensor:
        x = x @ module.weight  # whose width is no symbol
        return sdpa(heads(x), heads(x), heads(x), scale=scale)

    model, scales = Video(attend), []

    def convert(module, example_inputs):
        settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6})
        scales.extend(one.scale for one in vsa_compile.backend.convert(module, settings))
        return module.forward

    compiled = torch.compile(model, backend=convert, dynamic=True)
    latents = torch.randn(2, 16, *GRID, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for scale in (2, 3, 0.5, 0.25):
            assert_same_output(compiled(latents, scale), model(latents, scale))
    assert scales == [2, 3, 0.5, 0.25]
