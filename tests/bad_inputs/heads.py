"""X8 and X9: grouped heads, and what SDPA would broadcast."""

from __future__ import annotations

from torch import Tensor

from .row import COMPUTED, CONVERTED, TOKENS, Row, by_hand, failing_itself, heads, in_graph, sdpa, tensor

OTHERS = "dense: queries and keys are different tokens (cross-attention)"  # of another sample
ALIKE = "are not provably alike in batch and heads (those of k may divide q's); .expand() what is shared"
GROUPED = (
    "The heads of k and v must divide those of q (grouped-query attention). Repeat the heads of k and v with "
    ".repeat_interleave(n, dim=1) until they do."
)


def as_dict(**same: int) -> dict[str, Tensor]:
    """q, k and v of the given heads."""
    return {name: tensor(1, count, TOKENS, 16, seed=count) for name, count in same.items()}


ROWS = (
    Row("X8", "6 heads of q, 2 of k and v", by_hand(**as_dict(q=6, k=2, v=2)), COMPUTED),
    Row("X8", "6 heads of q, 1 of k and v", by_hand(**as_dict(q=6, k=1, v=1)), COMPUTED),
    Row(
        "X8",
        "3 heads of q, 2 of k and v",
        by_hand(**as_dict(q=3, k=2, v=2)),
        f"ArgumentError: shapes do not fit: q (1, 3, 60, 16), k (1, 2, 60, 16), v (1, 2, 60, 16). {GROUPED}",
    ),
    Row(
        "X8",
        "fewer heads of q than of k and v",
        by_hand(**as_dict(q=2, k=4, v=4)),
        f"ArgumentError: shapes do not fit: q (1, 2, 60, 16), k (1, 4, 60, 16), v (1, 4, 60, 16). {GROUPED}",
    ),
    Row(
        "X8",
        "k and v with different heads",
        by_hand(**as_dict(q=4, k=2, v=1)),
        "ArgumentError: shapes do not fit: q (1, 4, 60, 16), k (1, 2, 60, 16), v (1, 1, 60, 16). "
        "k and v must have the same batch, heads and tokens; .expand() the one that is shared.",
    ),
    Row(
        "X8",
        "a model with 4 heads of q, 2 of k and v",
        in_graph(lambda x: sdpa(heads(x, 4), *[heads(x, 4)[:, 1:3]] * 2, enable_gqa=True)),
        CONVERTED,
    ),
    Row(
        "X8",
        "a model with 4 heads of q, 1 of k and v, broadcast without enable_gqa",
        in_graph(lambda x: sdpa(heads(x, 4), *[heads(x, 4)[:, 1:2]] * 2)),
        CONVERTED,
    ),
    Row(
        "X8",
        "a model with one head of q, broadcast over 2 of k and v",
        in_graph(lambda x: sdpa(heads(x)[:, :1], heads(x), heads(x))),
        f"dense: q [2, 1, 60, 16], k [2, 2, 60, 16] and v [2, 2, 60, 16] {ALIKE}",
    ),
    Row(
        "X8",
        "a model with 2 heads of k, and one of v that is broadcast",
        in_graph(lambda x: sdpa(heads(x), heads(x), heads(x)[:, 1:])),
        f"dense: q [2, 2, 60, 16], k [2, 2, 60, 16] and v [2, 1, 60, 16] {ALIKE}",
    ),
    Row(
        "X8",
        "a model with 3 heads of q, 2 of k and v: fails without us, too",
        failing_itself(lambda x: sdpa(heads(x, 4)[:, :3], *[heads(x, 4)[:, :2]] * 2, enable_gqa=True)),
        "RuntimeError: Number of heads in key and value must divide the number of heads in ...",
    ),
    Row(
        "X9",
        "batch 2 of q, 1 of k and v",
        by_hand(q=tensor(2, 2, TOKENS, 16)),
        "ArgumentError: shapes do not fit: q (2, 2, 60, 16), k (1, 2, 60, 16), v (1, 2, 60, 16). q, k and v "
        "must "
        "have the same batch; nothing is broadcast. Call .expand(2, -1, -1, -1) on what is shared: it copies "
        "nothing.",
    ),
    Row(
        "X9",
        "the same, after .expand",
        by_hand(
            q=tensor(2, 2, TOKENS, 16),
            **{
                name: tensor(1, 2, TOKENS, 16, seed=seed).expand(2, -1, -1, -1)
                for seed, name in ((1, "k"), (2, "v"))
            },
        ),
        COMPUTED,
    ),
    Row(
        "X9",
        "a model with batch 2 of q, 1 of k and v, broadcast",
        in_graph(lambda x: sdpa(heads(x), heads(x[:1]), heads(x[:1]))),
        OTHERS,
    ),
    Row(
        "X9",
        "a model with batch 1 of q, broadcast over 2 of k and v",
        in_graph(lambda x: sdpa(heads(x[:1]), heads(x), heads(x))),
        OTHERS,
    ),
    Row(
        "X9",
        "a model with batch 2 of k, and 1 of v that is broadcast",
        in_graph(lambda x: sdpa(heads(x), heads(x), heads(x[:1]))),
        f"dense: q [2, 2, 60, 16], k [2, 2, 60, 16] and v [1, 2, 60, 16] {ALIKE}",
    ),
)
