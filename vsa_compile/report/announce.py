"""What the counters and the log say of the decisions on a graph."""

from __future__ import annotations

import logging

from ..analysis.graph_facts import example_of, sizes_of
from ..convert.judge import Conversion, Decision, Refusal, attention_arguments, kernel_of
from ..convert.refusals import OF_SPEED
from ..options import Options
from ..torch_compat import counters, shape_environment, size_hint
from .site_report import describe

log = logging.getLogger(__name__)


def count(decisions: list[Decision]) -> None:
    """Add them to Dynamo's counters, under "vsa_compile"."""
    table = counters()["vsa_compile"]
    for decision in decisions:
        if isinstance(decision, Conversion):
            table["converted"] += 1
        else:
            table["refused"] += 1
            table[f"refused.{decision.reason.slug}"] += 1


def kernels_of(decisions: list[Decision], settings: Options) -> list[str]:
    """The kernels that will serve the conversions, for `announce`; asked before the graph is edited."""
    if not log.isEnabledFor(logging.INFO):
        return []
    return sorted({kernel_of(one, settings).name for one in decisions if isinstance(one, Conversion)})


def announce(decisions: list[Decision], kernels: list[str]) -> None:
    """Log how many calls became sparse, each of them for debugging, and warn of those that could have."""
    for decision in decisions:
        if isinstance(decision, Refusal):
            _say_once(decision)
    converted = sum(isinstance(decision, Conversion) for decision in decisions)
    through = f", through {' and '.join(kernels)}" if kernels else ""
    log.info("%d of %d attention calls made sparse%s", converted, len(decisions), through)
    for decision in decisions:
        log.debug("%s", describe(decision))


_said: set[str] = set()
_LONG = 1024  # tokens; below that no kernel of ours beats dense attention


def _say_once(refusal: Refusal) -> None:
    """Warn that a call which could be sparse stays dense, once per process and reason.

    A call whose grid is unknown is reported only from _LONG tokens on: shorter ones are hardly video."""
    reason, query = refusal.reason, attention_arguments(refusal.call.node).get("query")
    of_speed = reason.slug in OF_SPEED
    tokens = [0, *(sizes_of(example_of(query)) or [0])][-2]
    if reason.asked and not isinstance(tokens, int):
        tokens = size_hint(tokens, shape_environment(refusal.call.owner))
    what = reason.text if of_speed else reason.slug
    if what not in _said and (of_speed or (reason.asked and tokens >= _LONG)):
        _said.add(what)
        logging.getLogger("vsa_compile.speed").warning("video attention stays dense: %s", reason.text)
