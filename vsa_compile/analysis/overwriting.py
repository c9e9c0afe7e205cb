"""The axis of a value after some of its positions were written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .algebra import REORDERED, UNKNOWN, Axis, includes, rigid, same, unit
from .pieces import cut, put, turned
from .sizes import equal
from .unify import join
from .values import Known, Somewhere, Taken


@dataclass(frozen=True)
class Write:
    """A write of one value into another.

    `blank`: the target held nobody's tokens before. `tokens`: the written value holds somebody's tokens.
    """

    blank: bool
    tokens: bool

    def held(self, old: Axis, new: Axis, *, everywhere: bool, all_of_it: bool) -> Axis:
        """The axis of a dimension that held `old` and of which some entries hold `new` now.

        `everywhere`: the whole length of this dimension was written. `all_of_it`: so was that of all others.
        """
        if old is new or not self.tokens or equal(new.size, 1) != equal(old.size, 1):
            return old
        if equal(new.size, 1):
            return old if old.cut is None else new if self.blank or all_of_it else unit()
        if same(old, new):
            return old
        if self.blank or rigid(new):
            return new
        if not all_of_it and rigid(old):  # what is left of it stays in that order, beside the new
            return old
        if includes(new, old):  # something was added
            return new if everywhere else old
        return new if all_of_it else join([old, new])

    def placed(self, taken: Taken, content: Taken, *, all_of_it: bool) -> Iterator[tuple[Axis, Axis]]:
        """(axis, the axis that it becomes) for each axis of which a single position was written.

        `content`: the positions that the written value is of. If that is unknown, the position holds a token
        of its own; positions that were filled in another order have no order.
        """
        if not self.tokens:
            return
        for (axis, at), source in zip(taken, _sources(taken, content), strict=True):
            if source == (axis, at):
                continue
            if isinstance(at, Somewhere) or not (self.blank or (all_of_it and len(taken) == 1)):
                yield axis, Axis(axis.size, rigid=UNKNOWN)
                continue
            origin, position = source or (axis, Somewhere())
            piece = unit() if isinstance(position, Somewhere) else cut(origin, position, position + 1)
            now = axis if cut(axis, at, at + 1) is piece else put(axis, at, piece)
            # Single positions do not show that the axis they are of was in another order.
            out_of_order = turned(now) or REORDERED in (rigid(now), rigid(axis))
            yield axis, Axis(axis.size, rigid=REORDERED) if out_of_order else now

    def content(self, known: Known, written: Known, *, all_of_it: bool) -> Taken:
        """The single positions that a value is of after it was written into."""
        if not self.tokens or known.taken == written.taken:
            return known.taken
        return written.taken if self.blank or all_of_it else ()


def _sources(taken: Taken, content: Taken) -> Sequence[tuple[Axis, int | Somewhere] | None]:
    """Which position of what is written goes to each position that is written into.

    k = qkv.unbind(2)[1] holds position 1 of (q, k, v), and k[:, i] position i of its tokens, too: of several,
    the one whose axis is as long.
    """
    if len(content) == len(taken):
        return content
    alike = [[one for one in content if equal(one[0].size, axis.size)] for axis, _ in taken]
    found = [one[0] for one in alike if len(one) == 1]
    return found if len(found) == len(taken) == len(set(found)) else (None,) * len(taken)
