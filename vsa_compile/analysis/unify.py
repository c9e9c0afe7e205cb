"""Unification of the forms of two axes, and the axis of an elementwise result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from .algebra import (
    REORDERED,
    UNKNOWN,
    Axis,
    Form,
    concatenate,
    factors,
    form_of,
    multiply,
    origins,
    rigid,
    run,
    same,
    segments,
    wholes,
)
from .sizes import at_most, divided, equal

_MOST_MEMBERS = 8  # larger joins count as new axes: a residual stream would gain a member per layer


def unify(a: Axis, b: Axis) -> bool:
    """Unify the forms of two axes of equal size; False if they contradict each other.

    The operation implies that the sizes are equal; their spellings may differ (210 tokens, and a table of
    5 * rows * cols). A rigid axis takes no part.
    """
    if a is b or equal(a.size, 1) or equal(b.size, 1):
        return True
    return _unify(form_of(a), form_of(b))


def meet(left: Sequence[Axis], right: Sequence[Axis]) -> bool:
    """Unify the dimensions of two values, unless their known axes are in different orders; then False."""
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if not (equal(a.size, 1) or equal(b.size, 1))]
    if all(a is b for a, b in pairs):
        return True
    if not _in_one_order([pair for a, b in pairs for pair in _atoms(a, b)]):
        return False
    for a, b in pairs:
        unify(a, b)
    return True


def _atoms(a: Axis, b: Axis) -> Iterable[tuple[Axis, Axis]]:
    left, right = wholes(a), wholes(b)
    return zip(left, right, strict=True) if len(left) == len(right) else ()


def _in_one_order(pairs: Sequence[tuple[Axis, Axis]]) -> bool:
    """Whether axes that are known on both sides have the same order on both.

    (frames, rows, cols) of one latent beside (cols, frames, rows) of another of the same sizes do not.
    """
    known = [(dict(origins(a)), dict(origins(b))) for a, b in pairs if a is not b]
    for (a, b), (c, d) in combinations([pair for pair in known if all(pair)], 2):
        before = {a[value] < c[value] for value in a.keys() & c.keys()}
        after = {b[value] < d[value] for value in b.keys() & d.keys()}
        if len(before | after) > 1 and before and after:
            return False
    return True


def _unify(a: Form, b: Form) -> bool:
    a, b = a.found(), b.found()
    if a is b:
        return True
    if a.rigid or b.rigid:
        return False
    if a.is_atom or b.is_atom:
        return _bind(a, b) if a.is_atom else _bind(b, a)
    if a.segments is not None and b.segments is not None:
        return _align_segments(_flat(a)[::-1], _flat(b)[::-1])
    if a.parts is not None and b.parts is not None:
        return _align(a, b)
    left, right = _real(a), _real(b)  # a concatenation against a product that has one real factor
    if len(left) == len(right) == 1 and (left[0] is not a or right[0] is not b):
        return _unify(left[0], right[0])
    return False


def _flat(form: Form) -> list[Form]:
    form = form.found()
    return [form] if form.segments is None else [leaf for part in form.segments for leaf in _flat(part)]


def _real(form: Form) -> list[Form]:
    """The factors of a form without those of size 1."""
    form = form.found()
    if form.parts is not None:
        return [leaf for part in form.parts for leaf in _real(part)]
    return [] if equal(form.size, 1) else [form]


def _bind(atom: Form, other: Form) -> bool:
    if _occurs(atom, other):
        return False
    if other.parts is not None:
        atom.forward = other
        return True
    known = dict(other.origins)
    if any(known.get(value, position) != position for value, position in atom.origins):
        return False  # two axes of one value
    atom.forward = other  # an atom, or a concatenation, which as a whole is the axis of that value
    other.origins |= atom.origins
    return True


def _occurs(atom: Form, form: Form) -> bool:
    form = form.found()
    return form is atom or any(_occurs(atom, part) for part in (form.parts or form.segments or ()))


def _align(a: Form, b: Form) -> bool:
    """Unify two products, splitting the larger atom where factors overlap."""
    parts = a.parts or (), b.parts or ()
    if len(parts[0]) == len(parts[1]):
        pairs = list(zip(*parts, strict=True))
        if all(equal(x.found().size, y.found().size) for x, y in pairs):
            agreed = [_unify(x, y) for x, y in pairs]
            a.forward = b if all(agreed) else None
            return all(agreed)
    left, right = _real(a)[::-1], _real(b)[::-1]
    agreed = True
    while left and right:
        x, y = left.pop().found(), right.pop().found()
        if equal(x.size, y.size) or not (left or right):
            agreed &= _unify(x, y)
        elif y.is_atom and (rest := divided(y.size, x.size)) is not None:
            right.append(_halved(y, x, rest))
        elif x.is_atom and (rest := divided(x.size, y.size)) is not None:
            left.append(_halved(x, y, rest))
        else:
            return False
    return agreed and not (left or right)


def _align_segments(left: list[Form], right: list[Form]) -> bool:
    """Unify two concatenations from the last segment on, cutting the longer atom where segments overlap."""
    agreed = True
    while left and right:
        x, y = left.pop(), right.pop()
        if equal(x.size, y.size) or not (left or right):
            agreed &= _unify(x, y)
        elif _opaque(y) and at_most(x.size, y.size):
            right += _cut_in_two(y, x)
            left.append(x)
        elif _opaque(x) and at_most(y.size, x.size):
            left += _cut_in_two(x, y)
            right.append(y)
        else:
            return False
    return agreed and not (left or right)


def _opaque(form: Form) -> bool:
    return form.is_atom and not form.origins and not form.rigid


def _cut_in_two(atom: Form, first: Form) -> list[Form]:
    """Cut an atom into a run as long as `first` and the rest; returned in reverse order."""
    atom.segments = (Form(first.size), Form(atom.size - first.size))
    return [*atom.segments[::-1]]


def _halved(atom: Form, first: Form, rest: object) -> Form:
    """Split an atom into a factor that is unified with `first` and the rest, which is returned."""
    atom.parts = tuple(Form(size, atom.origins, atom.rigid) for size in (first.size, rest))
    _unify(atom.parts[0], first)
    return atom.parts[1]


def join(axes: Iterable[Axis]) -> Axis:
    """The axis of a value that combines the tokens of several axes elementwise.

    A rigid axis adds nothing to others: position i of x + shuffled(x) holds token i of x, and more. If the
    forms contradict each other, the result is unknown.
    """
    result, *others = dict.fromkeys(axes)
    for other in others:
        result = _join(result, other)
    return result


def contradiction(*axes: Axis) -> Axis:
    """The axis where operands show different orders: reordered, unless no order is known of any of them."""
    return Axis(axes[0].size, rigid=UNKNOWN if all(rigid(axis) == UNKNOWN for axis in axes) else REORDERED)


def _join(a: Axis, b: Axis) -> Axis:
    if a is b or same(a, b):
        return a
    if b not in a.joins:
        a.joins[b] = _joined(a, b)
    return a.joins[b]


def _joined(a: Axis, b: Axis) -> Axis:
    rigid_nodes = _is_rigid_node(a), _is_rigid_node(b)
    if any(rigid_nodes):
        return contradiction(a, b) if all(rigid_nodes) else b if rigid_nodes[0] else a
    unify(a, b)
    if form_of(a) is form_of(b) and origins(a) and form_of(a).parts is None:
        return _node(a, b)
    for taken, assembled in ((segments, concatenate), (_nodes, multiply), (factors, multiply)):
        left, right = taken(a), taken(b)
        if len(left) != len(right) or not all(
            equal(x.size, y.size) for x, y in zip(left, right, strict=True)
        ):
            continue
        if len(left) > 1 or left[0] is not a or right[0] is not b:
            return assembled([_join(x, y) for x, y in zip(left, right, strict=True)])
        if form_of(a) is form_of(b):
            return _node(a, b)
    return contradiction(a, b)


def _nodes(axis: Axis) -> list[Axis]:
    return wholes(axis, opaque=True)


def _is_rigid_node(axis: Axis) -> bool:
    return axis.form is not None and bool(form_of(axis).rigid)


def _node(a: Axis, b: Axis) -> Axis:
    """The axis with the tokens of two nodes of one form; the same object for the same members."""
    members = a.members | b.members
    if members in (a.members, b.members):
        return a if members == a.members else b
    if a.cut and b.cut and equal(a.cut[1], b.cut[1]) and equal(a.cut[2], b.cut[2]):
        base = _join(a.cut[0], b.cut[0])  # the same run of two axes is the run of their join
        if not _is_rigid_node(base):
            return run(base, *a.cut[1:])
    first = min(members, key=lambda member: member.serial)
    if members not in first.joins:
        made = first.joins[members] = Axis(a.size, form=form_of(a))
        made.shown = a.shown
        if len(members) <= _MOST_MEMBERS:
            made.members = members
    return first.joins[members]
