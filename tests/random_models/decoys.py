"""Kinds that look like video self-attention and are not, each with the refusals that are right.

Of a shuffled or rolled axis it is known that it is in another order: "reordered". A cut one is a new one of
which nothing is known but its length: "one-axis" where the graph shows a video elsewhere, "unknown-grid"
where it shows none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .kinds import Added, Scene, _tables, kind, refused

UNKNOWN = ("one-axis", "unknown-grid")


# Keys that are other tokens than the queries.


@kind("cross-text", refused("cross"))
def _cross_text(attn, x: Tensor, scene: Scene) -> Added:
    return attn.plain(x, context=scene.text), None


@kind("cross-long-text", refused("cross"))
def _cross_long_text(attn, x: Tensor, scene: Scene) -> Added:
    """As many text tokens as video tokens."""
    return attn.plain(x, context=scene.long_text), None


@kind("cross-video", refused("cross"))
def _cross_video(attn, x: Tensor, scene: Scene) -> Added:
    """Another video of the same grid."""
    return attn.plain(x, context=scene.other), None


@kind("cross-pooled", refused("cross"))
def _cross_pooled(attn, x: Tensor, scene: Scene) -> Added:
    """Keys at half the resolution in time."""
    volume = x.transpose(1, 2).unflatten(2, scene.grid)
    pooled = F.avg_pool3d(volume, (2, 1, 1)).flatten(2).transpose(1, 2)
    return attn.plain(x, context=pooled), None


@kind("cross-blurred", refused("cross"))
def _cross_blurred(attn, x: Tensor, scene: Scene) -> Added:
    """Keys pooled at stride 1: as many, and not the same."""
    volume = x.transpose(1, 2).unflatten(2, scene.grid)
    size = tuple(3 if n >= 3 else 1 for n in scene.grid[1:])  # no more than there is: the meta kernel's rule
    pooled = F.avg_pool3d(volume, (1, *size), stride=1, padding=(0, *(n // 2 for n in size)))
    pooled = pooled.flatten(2).transpose(1, 2)
    return attn.plain(x, context=pooled), None


@kind("cross-rolled", refused("cross"))
def _cross_rolled(attn, x: Tensor, scene: Scene) -> Added:
    """Keys of the frame before."""
    return attn.plain(x, context=x.roll(scene.grid[1] * scene.grid[2], 1)), None


@kind("cross-shifted", refused("cross"))
def _cross_shifted(attn, x: Tensor, scene: Scene) -> Added:
    """Keys of the frame before, the first frame's twice, put together by hand."""
    frame = scene.grid[1] * scene.grid[2]
    return attn.plain(x, context=torch.cat([x[:, :frame], x[:, :-frame]], dim=1)), None


@kind("cross-columns", refused("cross"))
def _cross_columns(attn, x: Tensor, scene: Scene) -> Added:
    """The same keys in another order: dense attention does not care, tiles of keys do."""
    return attn.plain(x, context=_columns_first(x, scene)), None


@kind("text-self", refused(*UNKNOWN))
def _text_self(attn, x: Tensor, scene: Scene) -> Added:
    return torch.zeros_like(x), attn.plain(scene.text)


@kind("long-text-self", refused(*UNKNOWN))
def _long_text_self(attn, x: Tensor, scene: Scene) -> Added:
    return torch.zeros_like(x), attn.plain(scene.long_text).mean(1, keepdim=True)


# Fewer axes than three.


@kind("spatial", refused("two-axes"))
def _spatial(attn, x: Tensor, scene: Scene) -> Added:
    frames, rows, cols = scene.grid
    out = attn.plain(x.reshape(x.shape[0] * frames, rows * cols, -1))
    return out.reshape(x.shape), None


@kind("temporal", refused("one-axis"))
def _temporal(attn, x: Tensor, scene: Scene) -> Added:
    batch, frames, pixels = x.shape[0], scene.grid[0], scene.grid[1] * scene.grid[2]
    columns = x.view(batch, frames, pixels, -1).transpose(1, 2).flatten(0, 1)
    return attn.plain(columns).unflatten(0, (batch, pixels)).transpose(1, 2).flatten(1, 2), None


@kind("rows-in-time", refused("two-axes"))
def _rows_in_time(attn, x: Tensor, scene: Scene) -> Added:
    """Attention over frames and cols, the rows in the batch."""
    grid = x.unflatten(1, scene.grid)
    out = attn.plain(grid.transpose(1, 2).flatten(2, 3).flatten(0, 1))
    back = out.unflatten(0, (x.shape[0], scene.grid[1])).unflatten(2, (scene.grid[0], scene.grid[2]))
    return back.transpose(1, 2).reshape(x.shape), None


@kind("swin", refused("two-axes"), even=True)
def _swin(attn, x: Tensor, scene: Scene) -> Added:
    """Windows of one frame."""
    (frames, rows, cols), (batch, _, dim) = scene.grid, x.shape
    boxes = x.view(batch, frames, 2, rows // 2, 2, cols // 2, dim).permute(0, 1, 2, 4, 3, 5, 6)
    out = attn.plain(boxes.reshape(batch * frames * 4, (rows // 2) * (cols // 2), dim))
    out = out.view(batch, frames, 2, 2, rows // 2, cols // 2, dim).permute(0, 1, 2, 4, 3, 5, 6)
    return out.reshape(x.shape), None


@kind("channels", refused(*UNKNOWN))
def _channels(attn, x: Tensor, scene: Scene) -> Added:
    """Channels attend to channels; the tokens are the width."""
    q, k, v = attn.heads(x, None, None)
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    swapped = (t.transpose(-1, -2).contiguous() for t in (q, k, v))
    out = F.scaled_dot_product_attention(*swapped)
    return attn.to_out(out.permute(0, 3, 1, 2).flatten(2)), None


# Raster tokens in another order, or not all of them.


def _columns_first(x: Tensor, scene: Scene) -> Tensor:
    return x.unflatten(1, scene.grid).permute(0, 2, 3, 1, 4).flatten(1, 3)


@kind("columns-first", refused("not-raster"))
def _columns(attn, x: Tensor, scene: Scene) -> Added:
    """(rows, cols, frames) order: q, k and v agree, but a tile would not be a box of the video."""
    frames, rows, cols = scene.grid
    out = attn.plain(_columns_first(x, scene)).unflatten(1, (rows, cols, frames))
    return out.permute(0, 3, 1, 2, 4).flatten(1, 3), None


@kind("rows-first", refused("not-raster"))
def _rows(attn, x: Tensor, scene: Scene) -> Added:
    """(rows, frames, cols) order."""
    frames, rows, cols = scene.grid
    tokens = x.reshape(x.shape[0], frames, rows, cols, -1).transpose(1, 2).reshape(x.shape)
    out = attn.plain(tokens).view(x.shape[0], rows, frames, cols, -1)
    return out.transpose(1, 2).reshape(x.shape), None


@kind("boxes", refused("not-raster"), even=True)
def _boxes(attn, x: Tensor, scene: Scene) -> Added:
    """Already in the order of tiles."""
    (frames, rows, cols), (batch, _, dim) = scene.grid, x.shape
    boxes = x.view(batch, frames, 2, rows // 2, 2, cols // 2, dim).permute(0, 2, 4, 1, 3, 5, 6)
    out = attn.plain(boxes.reshape(x.shape)).view(batch, 2, 2, frames, rows // 2, cols // 2, dim)
    return out.permute(0, 3, 1, 4, 2, 5, 6).reshape(x.shape), None


@kind("shuffled", refused("reordered"))
def _shuffled(attn, x: Tensor, scene: Scene) -> Added:
    out = attn.plain(x[:, scene.order])
    return out[:, scene.order.argsort()], None


@kind("flipped", refused("reordered"))
def _flipped(attn, x: Tensor, scene: Scene) -> Added:
    return attn.plain(x.flip(1)).flip(1), None


@kind("rolled", refused("reordered"))
def _rolled(attn, x: Tensor, scene: Scene) -> Added:
    return attn.plain(x.roll(1, 1)).roll(-1, 1), None


@kind("strided", refused(*UNKNOWN))
def _strided(attn, x: Tensor, scene: Scene) -> Added:
    """Every other token."""
    return attn.plain(x[:, ::2]).mean(1, keepdim=True), None


@kind("all-but-first", refused(*UNKNOWN))
def _all_but_first(attn, x: Tensor, scene: Scene) -> Added:
    return F.pad(attn.plain(x[:, 1:]), (0, 0, 1, 0)), None


@kind("gathered", refused("reordered"))
def _gathered(attn, x: Tensor, scene: Scene) -> Added:
    """The tokens of another order, by index_select."""
    return attn.plain(torch.index_select(x, 1, scene.order)).mean(1, keepdim=True), None


# Raster video, but with something that the sparse kernel does not do.


@kind("causal", refused("causal"))
def _causal(attn, x: Tensor, scene: Scene) -> Added:
    return attn.plain(x, tables=_tables(attn, scene), causal=True), None


@kind("dropout", refused("dropout"))
def _dropout(attn, x: Tensor, scene: Scene) -> Added:
    return attn.plain(x, tables=_tables(attn, scene), dropout=0.1), None


@kind("mask-between-tokens", refused("mask"))
def _mask_between_tokens(attn, x: Tensor, scene: Scene) -> Added:
    position = torch.arange(x.shape[1], device=x.device)
    return attn.plain(x, mask=(position[:, None] - position[None]).abs() < 30), None


@kind("mask-added", refused("mask"))
def _mask_added(attn, x: Tensor, scene: Scene) -> Added:
    added = torch.zeros_like(scene.seen, dtype=x.dtype).masked_fill(~scene.seen, -1e4)
    return attn.plain(x, mask=added[:, None, None]), None


@kind("mask-of-input", refused("mask"))
def _mask_of_input(attn, x: Tensor, scene: Scene) -> Added:
    """Nothing proves that it is True on the video."""
    return attn.plain(x, mask=scene.seen[:, None, None]), None


@kind("mask-into-video", refused("mask"))
def _mask_into_video(attn, x: Tensor, scene: Scene) -> Added:
    """The last frame is cut off the keys, by construction."""
    frames = torch.arange(x.shape[1], device=x.device) < x.shape[1] - scene.grid[1] * scene.grid[2]
    return attn.plain(x, mask=frames[None, None, None].expand(x.shape[0], -1, -1, -1)), None


@kind("mask-askew", refused("mask"))
def _mask_askew(attn, x: Tensor, scene: Scene) -> Added:
    """Video first, the mask of text first: the text's padding lies on video keys."""
    mask = F.pad(scene.text_mask, (0, x.shape[1]), value=True)[:, None, None]
    return attn.plain(torch.cat([x, scene.text], dim=1), mask=mask)[:, : x.shape[1]], None
