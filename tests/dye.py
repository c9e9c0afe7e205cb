"""Rule B, the tracer dye: inputs that make the operator say how much weight went where.

V is one-hot in the label of its key: the id of its video tile, or "other" for a non-video key, or
"padding" for a masked one. Then a query's output *is* the weight that it gives to every label: what it
does not see is exactly 0, and a column of ones is exactly 1, in any precision. Likewise one-hot output
gradients make grad_v the weight that a key gets from every query tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from attend_cases import Case, Results
from attend_judge import Dense
from compare import rounding
from torch import Tensor

from vsa_compile.ops import reference

ONES = 1  # the last column


def _labels(case: Case, tokens: int, start: int) -> Tensor:
    """(tokens,) int64: the video tile of each token, M for the others."""
    labels = torch.full((tokens,), case.boxes.tiles)
    labels[start : start + case.grid.tokens] = reference.tile_of_token(case.grid, case.tile)
    return labels


def key_labels(case: Case) -> Tensor:
    """(B, Nkv): video tile, M for other keys, M + 1 for masked ones."""
    labels = _labels(case, case.k.shape[2], case.kv_start).expand(case.k.shape[0], -1).clone()
    if case.key_padding is not None:
        labels[(labels == case.boxes.tiles) & ~case.key_padding] += 1
    return labels


def name_of(case: Case, label: int) -> str:
    tiles = case.boxes.tiles
    return f"tile {label}" if label < tiles else "other tokens" if label == tiles else "masked keys"


def assert_dye(case: Case, run: Callable[[Case], Results]) -> None:
    """Every query's weights go where they should, and every key's weights come from where they should."""
    weights = _weights(case)
    for first in range(0, case.boxes.tiles + 2, case.q.shape[-1] - ONES):
        count = min(case.q.shape[-1] - ONES, case.boxes.tiles + 2 - first)
        _assert_values(case, run, weights, range(first, first + count))
        _assert_gradients(case, run, weights, range(first, first + count))


def _weights(case: Case) -> Tensor:
    """(B, H, Nq, Nkv) fp64: what every query gives to every key."""
    x = Dense.of(case, torch.float64)
    return x.weights(x.q @ x.k.transpose(-1, -2) * case.scale)[0]


def _dyed(like: Tensor, labels: Tensor, columns: range) -> Tensor:
    """like (B, H, N, D) as one-hot of labels (B or 1, N), ones in the last column."""
    dye = torch.zeros_like(like, memory_format=torch.contiguous_format)
    dye[..., : len(columns)] = (labels[..., None] == torch.tensor(columns))[:, None]
    dye[..., -1] = 1
    return dye


def _assert_values(case: Case, run: Callable[[Case], Results], weights: Tensor, columns: range) -> None:
    labels = key_labels(case)
    out = run(replace(case, v=_dyed(case.v, labels, columns)))["out"].transpose(1, 2).double()
    wanted = weights @ _one_hot(labels, columns)[:, None]
    bad = _wrong(out[..., : len(columns)], wanted, case.q.dtype)
    if bad is not None:
        b, h, n, column = bad
        query = _labels(case, case.q.shape[2], case.q_start)[n]
        raise AssertionError(
            f"batch {b}, head {h}, query {n} of {name_of(case, int(query))} gives "
            f"{float(out[bad]):.3e} of its weight to {name_of(case, columns[column])}, "
            f"not {float(wanted[bad]):.3e}"
        )
    seen = weights.sum(-1) > 0
    assert not out[..., -1][~seen].any(), "a query that sees nothing is not 0"
    missed = (out[..., -1][seen] - 1).abs()
    # A sum of rounded weights over a sum of exact ones.
    allowed = rounding(case.q.dtype)
    assert bool((missed <= allowed).all()), f"weights sum to 1 +- {float(missed.max()):.2e}"


def _assert_gradients(case: Case, run: Callable[[Case], Results], weights: Tensor, columns: range) -> None:
    labels = _labels(case, case.q.shape[2], case.q_start)[None]
    dyed = replace(case, grad_out=_dyed(case.grad_out.transpose(1, 2), labels, columns).transpose(1, 2))
    got = run(dyed)["grad_v"].double()
    wanted = weights.transpose(-1, -2) @ _one_hot(labels, columns)[:, None]
    wanted = wanted.unflatten(1, (case.k.shape[1], -1)).sum(2)
    bad = _wrong(got[..., : len(columns)], wanted, case.q.dtype)
    if bad is not None:
        b, h, n, column = bad
        raise AssertionError(
            f"batch {b}, key head {h}, key {n} of {name_of(case, int(key_labels(case)[b, n]))} gets weight "
            f"{float(got[bad]):.3e} from the queries of {name_of(case, columns[column])}, "
            f"not {float(wanted[bad]):.3e}"
        )


def _one_hot(labels: Tensor, columns: range) -> Tensor:
    return (labels[..., None] == torch.tensor(columns)).double()


def _wrong(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> tuple[int, ...] | None:
    """The first value that is not exactly 0 where 0 is wanted, or off by more than rounding elsewhere."""
    allowed = 2 * rounding(dtype) * wanted + torch.finfo(dtype).tiny * (wanted > 0)
    if dtype == torch.float16:
        allowed = allowed + torch.finfo(dtype).smallest_normal * (wanted > 0)
    bad = ~((got - wanted).abs() <= allowed)
    return tuple(bad.nonzero()[0].tolist()) if bad.any() else None
