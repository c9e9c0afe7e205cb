"""The selections that the template tests are about: random scores with ties, thresholds, counts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsa_compile.ops import reference


@dataclass(frozen=True)
class Selection:
    """One call of vsa_compile::select on scores (B, H, M, MK).

    scores: "normal", "few" (so that most are ties), "strange" (NaN, infinities, both zeros), or "close"
    (differing in the last bits). count: the tensor's value, None for none. dynamic: all sizes symbolic.
    strided: rows are columns of another tensor.
    """

    name: str
    shape: tuple[int, int, int, int] = (1, 2, 5, 7)
    at_most: int = 3
    scores: str = "normal"
    threshold: bool = False
    count: int | None = None
    strided: bool = False
    dynamic: bool = False
    wide: bool = False
    seed: int = 0

    def tensors(self) -> list[Tensor]:
        """scores, and the threshold and the count where there are any; the same numbers on every call."""
        source = torch.Generator().manual_seed(self.seed + len(self.name))
        scores = torch.randn(self.shape, generator=source)
        if self.scores == "close":
            scores = 1 + scores.mul(8).round() * torch.finfo(torch.float32).eps
        elif self.scores != "normal":
            scores = scores.mul(2).round().div(2)
        if self.scores == "strange":
            odd = torch.tensor(
                [torch.nan, torch.nan, torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-40, -1e-40, 0.0]
            )
            where = torch.rand(self.shape, generator=source) < 0.5
            scores = scores.where(where, odd[torch.randint(0, len(odd), self.shape, generator=source)])
        if self.strided:
            scores = scores.transpose(-1, -2).contiguous().transpose(-1, -2)
        threshold = torch.randn(self.shape[:3], generator=source).round()
        threshold[..., 1:2] = 100.0
        extra = [threshold if self.threshold else None]
        extra.append(None if self.count is None else torch.tensor(self.count, dtype=torch.int32))
        return [scores, *(x for x in extra if x is not None)]

    def call(self) -> tuple[Callable, tuple, list[Tensor]]:
        """The function under test, its integers and its tensors."""

        def run(at_most: int, *tensors: Tensor) -> Any:
            return torch.ops.vsa_compile.select(tensors[0], at_most, *self.optional(tensors))

        return run, (self.at_most,), self.tensors()

    def optional(self, tensors: Any) -> tuple[Tensor | None, Tensor | None]:
        """threshold and count, out of `tensors`."""
        threshold = tensors[1] if self.threshold else None
        return threshold, None if self.count is None else tensors[-1]

    def verdict(self, outputs: list[Tensor] | str) -> str | None:
        """What is wrong with tiles and counts; None if nothing is. Selection is exact."""
        if isinstance(outputs, str):
            return outputs
        tiles, counts = outputs
        tensors = self.tensors()
        wanted, wanted_counts = reference.select(tensors[0], self.at_most, *self.optional(tensors))
        if tiles.dtype != torch.int32 or counts.dtype != torch.int32:
            return f"tiles are {tiles.dtype}, counts {counts.dtype}"
        if tiles.shape != wanted.shape or not tiles.is_contiguous():
            return f"tiles are {tuple(tiles.shape)} with strides {tiles.stride()}"
        if not torch.equal(counts, wanted_counts):
            return f"counts are {counts.tolist()}, not {wanted_counts.tolist()}"
        listed = torch.arange(self.at_most) < counts[..., None]
        wrong = (listed & (tiles != wanted)).any(-1)
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            return f"row {at} keeps {tiles[at].tolist()}, not {wanted[at].tolist()}"
        if not bool(((tiles >= 0) & (tiles < self.shape[-1])).all()):
            return "what follows a list is no tile"
        return None


SELECTIONS = (
    Selection("select_ties", (1, 2, 6, 40), 30, "few"),
    Selection("select_strange_scores", (2, 1, 8, 19), 3, "strange", strided=True),
    Selection("select_all", (1, 1, 3, 5), 5),
    Selection("select_by_threshold", (1, 2, 6, 33), 12, "few", threshold=True),
    Selection("select_by_strange_threshold", (1, 1, 8, 33), 33, "strange", threshold=True, count=20),
    Selection("select_by_count", (1, 2, 4, 17), 8, "close", count=5),
    Selection("select_count_of_nothing", (1, 1, 3, 17), 8, count=-1),
    Selection("select_symbolic", (1, 2, 3, 37), 5, "few", threshold=True, dynamic=True, wide=True),
    Selection("select_rows_of_several_blocks", (1, 1, 1, 8200), 300, "few", threshold=True),
)


def random_selections(seed: int, count: int) -> tuple[Selection, ...]:
    """Selections that differ in everything a kernel could get wrong; names tell them apart."""
    chance = random.Random(seed)

    def one(index: int) -> Selection:
        length = chance.choice((1, 2, 31, 32, 33, 70, 300))
        return Selection(
            f"select_random_{seed}_{index}",
            shape=(chance.randint(1, 2), chance.randint(1, 2), chance.randint(1, 5), length),
            at_most=chance.randint(1, length), scores=chance.choice(("normal", "few", "strange", "close")),
            threshold=chance.random() < 0.5,
            count=chance.choice((None, None, -1, 1, length // 2, length + 9)),
            strided=chance.random() < 0.3, dynamic=chance.random() < 0.3 and length > 2,
            wide=chance.random() < 0.2, seed=seed + index,
        )  # fmt: skip

    return tuple(one(index) for index in range(count))
