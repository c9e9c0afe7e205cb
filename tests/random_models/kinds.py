"""What attends to what in a block of each kind, and whether that is video self-attention.

Every kind is a function of the attention module, the normed video tokens (B, N, dim) in raster order
and the scene; it returns what video and text get added. Beside it stands the truth: a `Conversion` of the
grid, or the reasons one of which must be given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import rope

Grid = tuple[int, int, int]
Added = tuple[Tensor, Tensor | None]


class Scene(NamedTuple):
    """All that a block may look at beside its video tokens."""

    grid: Grid
    text: Tensor  # (B, L, dim)
    text_mask: Tensor  # (B, L) bool
    long_text: Tensor  # (B, N, dim): as many tokens as the video has
    other: Tensor  # (B, N, dim): the tokens of another video of the same grid
    order: Tensor  # (N): a shuffle
    seen: Tensor  # (B, N) bool
    time: Tensor  # (B, dim)
    tables: dict[str, rope.Tables]


@dataclass(frozen=True)
class Truth:
    """The true judgement of a call: its grid and where the video starts, or acceptable refusals.

    `runs` are the lengths of the query's runs, the video's as its grid.
    """

    grid: Grid | None = None
    runs: tuple[Grid | int, ...] = ()
    starts: tuple[int, int] = (0, 0)
    slugs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Kind:
    """`truth(grid, text)` for a grid and a text length; `even`: only for even rows and cols above 2."""

    run: Callable[..., Added]
    truth: Callable[[Grid, int], Truth]
    even: bool = False


KINDS: dict[str, Kind] = {}


def site(*, before: int | str = 0, after: int | str = 0, keys_before: int | str | None = None):
    """Truth of video self-attention with runs of that length around it ("text": as long as the text)."""

    def truth(grid: Grid, text: int) -> Truth:
        first, last = (text if run == "text" else run for run in (before, after))
        keys = text if keys_before == "text" else keys_before
        runs = tuple(run for run in (first, grid, last) if run)
        return Truth(grid, runs, (first, first if keys is None else keys))

    return truth


def refused(*slugs: str):
    """Truth of a call that is not video self-attention."""
    return lambda grid, text: Truth(slugs=frozenset(slugs))


def kind(name: str, truth: Callable[[Grid, int], Truth], *, even: bool = False):
    """Register a function as the kind `name`."""

    def register(function: Callable[..., Added]) -> Callable[..., Added]:
        KINDS[name] = Kind(function, truth, even)
        return function

    return register


def kinds_for(grid: Grid, *, windows: bool = True) -> tuple[str, ...]:
    """The kinds that this grid admits, the true ones first and about as often as all others together."""
    windows = windows and {grid[1], grid[2]} <= {4, 6}
    fitting = [name for name, k in KINDS.items() if windows or not k.even]
    true = [name for name in fitting if KINDS[name].truth(grid, 1).grid]
    return tuple(true * 3 + [name for name in fitting if name not in true])


def _tables(attn, scene: Scene) -> rope.Tables | None:
    return None if attn.block.rope == "none" else scene.tables[attn.block.rope]


def _seen(attn, x: Tensor, scene: Scene, *, text_first: bool) -> Tensor | None:
    """A key-padding mask of a joint sequence, built in the graph from the text's own."""
    if not attn.block.masked:
        return None
    if text_first:
        return F.pad(scene.text_mask, (0, x.shape[1]), value=True)[:, None, None, :]
    ones = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return torch.cat([ones, scene.text_mask], dim=1)[:, None, None, :]


# Video self-attention.


@kind("self", site())
def _self(attn, x: Tensor, scene: Scene) -> Added:
    return attn.plain(x, tables=_tables(attn, scene)), None


@kind("one-stream-before", site(before="text"))
def _one_stream_before(attn, x: Tensor, scene: Scene) -> Added:
    """CogVideoX: text and video are one sequence through one projection."""
    joint = torch.cat([scene.text, x], dim=1)
    out = attn.plain(joint, mask=_seen(attn, x, scene, text_first=True))
    text = scene.text.shape[1]
    return out[:, text:], out[:, :text]


@kind("one-stream-after", site(after="text"))
def _one_stream_after(attn, x: Tensor, scene: Scene) -> Added:
    joint = torch.cat([x, scene.text], dim=1)
    out = attn.plain(joint, mask=_seen(attn, x, scene, text_first=False))
    video, text = out.split([x.shape[1], scene.text.shape[1]], dim=1)
    return video, text


def _two_streams(attn, x: Tensor, scene: Scene, *, text_first: bool) -> Tensor:
    video = attn.heads(x, None, _tables(attn, scene))
    text = attn.text_heads(scene.text, None, None)
    pairs = zip(text, video, strict=True) if text_first else zip(video, text, strict=True)
    return attn.attend(
        *(torch.cat(pair, dim=2) for pair in pairs), mask=_seen(attn, x, scene, text_first=text_first)
    )


@kind("two-stream-before", site(before="text"))
def _two_stream_before(attn, x: Tensor, scene: Scene) -> Added:
    """SD3 and its kin: q, k and v are joined behind two projections; RoPE is for the video alone."""
    out = _two_streams(attn, x, scene, text_first=True)
    return out[:, -x.shape[1] :], out.narrow(1, 0, scene.text.shape[1])


@kind("two-stream-after", site(after="text"))
def _two_stream_after(attn, x: Tensor, scene: Scene) -> Added:
    out = _two_streams(attn, x, scene, text_first=False)
    return out[:, : x.shape[1]], out[:, x.shape[1] :]


@kind("registers", site(before=2))
def _registers(attn, x: Tensor, scene: Scene) -> Added:
    """Learned tokens in front; they are as good as text."""
    joint = torch.cat([attn.registers.expand(x.shape[0], -1, -1), x], dim=1)
    return attn.plain(joint)[:, 2:], None


@kind("text-among-keys", site(keys_before="text"))
def _text_among_keys(attn, x: Tensor, scene: Scene) -> Added:
    """Video queries, text and video keys: self-attention with dense keys in front."""
    return attn.plain(x, context=torch.cat([scene.text, x], dim=1)), None


@kind("reference-among-keys", site())
def _reference_among_keys(attn, x: Tensor, scene: Scene) -> Added:
    """The keys of another video behind the own ones are dense keys."""
    return attn.plain(x, context=torch.cat([x, scene.other], dim=1)), None


@kind("mask-of-ones", site())
def _mask_of_ones(attn, x: Tensor, scene: Scene) -> Added:
    mask = torch.ones(x.shape[0], 1, 1, x.shape[1], dtype=torch.bool, device=x.device)
    return attn.plain(x, mask=mask, tables=_tables(attn, scene)), None


@kind("windows", refused("windows"), even=True)
def _windows(attn, x: Tensor, scene: Scene) -> Added:
    """Four windows over all frames in the batch: each is a small video, and not the one to be seen."""
    frames, rows, cols = scene.grid
    batch, tokens, dim = x.shape
    boxes = x.view(batch, frames, 2, rows // 2, 2, cols // 2, dim).permute(0, 2, 4, 1, 3, 5, 6)
    out = attn.plain(boxes.reshape(batch * 4, frames * (rows // 2) * (cols // 2), dim))
    out = out.view(batch, 2, 2, frames, rows // 2, cols // 2, dim).permute(0, 3, 1, 4, 2, 5, 6)
    return out.reshape(batch, tokens, dim), None
