"""The plan of a small random video transformer: what hypothesis draws, shrinks and prints.

The repr of a `Plan` alone reproduces the model, its inputs and its ground truth.
"""

import math
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from .rope import SPELLINGS

Grid = tuple[int, int, int]

PATCHES = (
    "flatten-transpose",
    "permute-flatten",
    "rearrange",
    "by-hand",
    "frame-by-frame",
    "in-time",
    "tokens",
)
QKV = ("separate", "chunk", "split", "unbind", "permute")
HEADS = ("transpose", "permute", "sequence-first")
MERGE = ("flatten", "reshape", "view")
HELD = ("flat", "frames", "grid", "channels")
NORMS = ("none", "layer", "rms", "wide")
GQA = ("flag", "repeat", "expand")


@dataclass(frozen=True)
class Block:
    """One transformer block. `kind` (see kinds.py) says what attends to what, the rest how it is written."""

    kind: str = "self"
    qkv: str = "separate"
    heads: str = "transpose"
    merge: str = "flatten"
    held: str = "flat"
    norm: str = "none"
    rope: str = "none"
    rope_first: bool = False  # rotated as (B, N, H, D), before the heads come forward
    groups: int = 1
    gqa: str = "flag"
    scale: float | None = None
    positional: bool = False
    contiguous: bool = False
    modulated: bool = False
    masked: bool = False  # a key-padding mask over the text of a joint sequence
    checkpointed: bool = False
    autocast: bool = False


@dataclass(frozen=True)
class Plan:
    """A model and its inputs. The grid is in tokens; the model itself takes any grid."""

    grid: Grid = (3, 4, 5)
    blocks: tuple[Block, ...] = (Block(),)
    batch: int = 1
    heads: int = 2
    width: int = 8
    text: int = 3
    patch: str = "flatten-transpose"
    unpatch: bool = True
    min_tokens: int = 0
    seed: int = 0

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def dim(self) -> int:
        return self.heads * self.width


def grids() -> st.SearchStrategy[Grid]:
    """Sizes that fit no tile, cubes, and everything between."""
    size = st.integers(2, 6)
    return st.one_of(
        st.tuples(size, size, size), st.sampled_from([(4, 4, 4), (3, 3, 3), (4, 4, 5), (5, 4, 4)])
    )


@st.composite
def blocks(draw: st.DrawFn, kinds: tuple[str, ...], autocast: bool) -> Block:
    """A block of one of `kinds`."""
    flag, qkv = st.booleans(), draw(st.sampled_from(QKV))
    return Block(
        kind=draw(st.sampled_from(kinds)),
        qkv=qkv,
        heads=draw(st.sampled_from(HEADS)),
        merge=draw(st.sampled_from(MERGE)),
        held=draw(st.sampled_from(HELD)),
        norm=draw(st.sampled_from(NORMS)),
        rope=draw(st.sampled_from(("none", *SPELLINGS))),
        rope_first=draw(flag),
        groups=draw(st.sampled_from((1, 2))) if qkv in ("separate", "split") else 1,
        gqa=draw(st.sampled_from(GQA)),
        scale=draw(st.sampled_from((None, 0.25))),
        positional=draw(flag),
        contiguous=draw(flag),
        modulated=draw(flag),
        masked=draw(flag),
        checkpointed=draw(flag),
        autocast=autocast and draw(flag),
    )


@st.composite
def plans(draw: st.DrawFn, *, autocast: bool = False, symbolic: bool = False, depth: int = 3) -> Plan:
    """A plan with at least one block.

    Bare tokens show their grid where they are unpatchified, so then they always are, and are not cut
    into windows before; nor are their RoPE tables stretched from one axis each (`expand` makes axes of
    no origin, and the reshape to a grid then finds three already). `symbolic` is for graphs with
    symbolic sizes: no windows, whose sizes are quotients of quotients that no algebra takes apart, and
    checkpoints around a lone block only: Dynamo itself trips over a float that becomes symbolic in one
    checkpointed body and is used outside of it.
    """
    from .kinds import kinds_for

    grid = draw(grids())
    patch = draw(st.sampled_from(PATCHES))
    kinds = kinds_for(grid, windows=patch != "tokens" and not symbolic)
    drawn = draw(st.lists(blocks(kinds, autocast), min_size=1, max_size=depth))
    if patch == "tokens":
        meshed = {"complex": "half", "axes": "interleaved"}
        drawn = [replace(block, rope=meshed.get(block.rope, block.rope)) for block in drawn]
    if symbolic and len(drawn) > 1:
        drawn = [replace(block, checkpointed=False) for block in drawn]
    return Plan(
        grid=grid,
        blocks=tuple(drawn),
        batch=draw(st.integers(1, 2)),
        width=draw(st.sampled_from((8, 12, 16))),
        text=draw(st.integers(1, 7)),
        patch=patch,
        unpatch=patch == "tokens" or draw(st.booleans()),
        min_tokens=draw(st.sampled_from((0, 0, 0, 60))),
        seed=draw(st.integers(0, 3)),
    )
