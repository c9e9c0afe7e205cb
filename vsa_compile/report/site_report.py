"""What was done to a model and why, as rows: for explain(), convert_exported() and the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..analysis import Segment
from ..analysis.algebra import Size
from ..analysis.graph_facts import example_of, sizes_of
from ..convert.judge import Conversion, Decision, Refusal, attention_arguments, kernel_of
from ..grid import Grid, GridSizes
from ..options import Options
from ..torch_compat import shape_environment, size_hint
from .cost import CallSizes, cost_of


@dataclass(frozen=True)
class SiteReport:
    """One attention call. Sizes are those of the example inputs, in tokens and tiles.

    name: module path. converted: whether it becomes sparse. reason: why not, else ""; slug: its short name.
    grid: (frames, rows, cols) of its video tokens, or None. segments: the query tokens, in order.
    tokens: of the query. kept_tiles of total_tiles: what each query tile keeps; 0 of 0 if refused.
    flops_dense, flops_sparse: of the attention itself, forward (4 B H D per query-key pair).
    kernel: the kernel for a converted call on this machine, or "" on the meta device.
    """

    name: str
    converted: bool
    reason: str
    slug: str
    grid: GridSizes | None
    segments: tuple[str, ...]
    tokens: int
    kept_tiles: int
    total_tiles: int
    flops_dense: int
    flops_sparse: int
    kernel: str = ""


@dataclass(frozen=True)
class Report:
    """The result of `explain` and `convert_exported`: `print(report)` is a table, `.to_json()` is JSON."""

    sites: tuple[SiteReport, ...]
    options: Options

    @property
    def converted(self) -> int:
        return sum(site.converted for site in self.sites)

    @property
    def flops_dense(self) -> int:
        return sum(site.flops_dense for site in self.sites)

    @property
    def flops_sparse(self) -> int:
        return sum(site.flops_sparse for site in self.sites)

    def to_json(self) -> str:
        """One JSON object; later versions may add names to it, but remove none:

        "options": the fields of `Options`;
        "totals": {"converted", "refused", "flops_dense", "flops_sparse"}, integers;
        "sites": one object for each attention call, in order, with the fields of `SiteReport`.
        """
        totals = {
            "converted": self.converted,
            "refused": len(self.sites) - self.converted,
            "flops_dense": self.flops_dense,
            "flops_sparse": self.flops_sparse,
        }
        options = asdict(self.options) | {"inductor": dict(self.options.inductor)}
        sites = [asdict(site) for site in self.sites]
        return json.dumps({"options": options, "totals": totals, "sites": sites}, indent=2, default=str)

    def __str__(self) -> str:
        header = (
            "attention",
            "",
            "grid",
            "tokens",
            "tiles kept",
            "GFLOP dense",
            "sparse",
            "why it stays dense",
        )
        rows = [header, *map(_row, self.sites)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, "", self._summary()])

    def _summary(self) -> str:
        if not self.sites:
            return "No attention call was seen. Is scaled_dot_product_attention inside the compiled part?"
        saved = self.flops_dense / self.flops_sparse if self.flops_sparse else 1.0
        kernels = sorted({site.kernel for site in self.sites if site.kernel})
        return (
            f"{self.converted} of {len(self.sites)} attention calls sparse; attention FLOPs "
            f"{_giga(self.flops_dense)} -> {_giga(self.flops_sparse)} GFLOP ({saved:.1f}x less)."
            + (f" They run through {' and '.join(kernels)}." if kernels else "")
        )


def _giga(flops: int) -> str:
    giga = flops / 1e9
    return f"{giga:,.0f}" if giga >= 100 else f"{giga:.3g}"


def _row(site: SiteReport) -> tuple[str, ...]:
    return (
        site.name or "(no module path)",
        "sparse" if site.converted else "dense",
        str(Grid(*site.grid)) if site.grid else "",
        f"{site.tokens:,}",
        f"{site.kept_tiles} of {site.total_tiles}" if site.converted else "",
        _giga(site.flops_dense),
        _giga(site.flops_sparse),
        site.reason,
    )


def site_report(decision: Decision, options: Options) -> SiteReport:
    """The row of one decision, with numbers for the example inputs. Call before the graph is rewritten."""
    environment = shape_environment(decision.call.owner)

    def hint(size: Size) -> int:
        return size_hint(size, environment)

    arguments = attention_arguments(decision.call.node)
    queries, keys = (
        [hint(s) for s in sizes_of(example_of(arguments.get(n))) or [1]] for n in ("query", "key")
    )
    q_tokens, kv_tokens, per_pair = amounts(queries, keys)
    grid, kept, total, pairs = None, 0, 0, q_tokens * kv_tokens
    if isinstance(decision, Conversion):
        grid = Grid(*map(hint, decision.grid))
        starts = (hint(decision.q_start), hint(decision.kv_start))
        kept, total, pairs = cost_of(CallSizes(tuple(queries), tuple(keys), grid, *starts), options)
    return SiteReport(
        name=decision.name,
        converted=isinstance(decision, Conversion),
        reason=decision.reason.text if isinstance(decision, Refusal) else "",
        slug=decision.reason.slug if isinstance(decision, Refusal) else "",
        grid=tuple(grid) if grid else None,
        segments=tuple(_segment_text(segment, hint) for segment in decision.segments),
        tokens=q_tokens,
        kept_tiles=kept,
        total_tiles=total,
        flops_dense=per_pair * q_tokens * kv_tokens,
        flops_sparse=per_pair * pairs,
        kernel=_kernel(decision, options),
    )


def _kernel(decision: Decision, options: Options) -> str:
    on_meta = example_of(decision.call.node).device.type == "meta"
    return kernel_of(decision, options).name if isinstance(decision, Conversion) and not on_meta else ""


def amounts(queries: Sequence[int], keys: Sequence[int]) -> tuple[int, int, int]:
    """Query tokens, key tokens, and the FLOPs of one query-key pair over all batches and heads."""
    batch, heads, q_tokens, width = [1, 1, 1, *queries][-4:]
    return q_tokens, [1, *keys][-2], 4 * batch * heads * width


def _segment_text(segment: Segment, hint: Callable[[Size], int]) -> str:
    if segment.grid:
        return f"video {Grid(*map(hint, segment.grid))}"
    return f"other {hint(segment.size)}"


def describe(decision: Decision) -> str:
    """One line for the log."""
    segments = " | ".join(map(str, decision.segments))
    name = decision.name or decision.call.node.name
    if isinstance(decision, Conversion):
        return f"{name}: sparse, [{segments}]"
    return f"{name}: dense, [{segments}], {decision.reason.slug}: {decision.reason.text}"
