"""Renders a template as a plain triton.jit kernel, without Inductor: the same text between other hooks.

Sizes and strides, which Inductor writes into a kernel as numbers, are arguments here: one kernel serves all.
Triton specialises it on strides that are 1 or divisible by 16, which loads depend on, but not on sizes, which
would mean a compilation for many a new resolution. Constants stay constants.
Loads jinja2 and triton when called, not when imported.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .templates import Template

OUTPUT = "OUTPUT"  # the argument that store_output writes to
_DEFINITION = "<definition>"


class Number(NamedTuple):
    """An integer argument of a kernel: a size or a stride of one of its tensors."""

    tensor: str
    what: str  # "size" or "stride"
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}_{self.what}_{self.dim}"


class Source(NamedTuple):
    """A rendered kernel. Its arguments: inputs, OUTPUT, numbers, constants."""

    name: str
    text: str
    inputs: tuple[str, ...]
    numbers: tuple[Number, ...]
    constants: tuple[str, ...]


@dataclass
class _Hooks:
    """The functions that a template calls while it is rendered. ranks: the dimensions of its inputs."""

    ranks: tuple[int, ...]
    wide: bool
    inputs: tuple[str, ...] = ()
    numbers: dict[Number, None] = field(default_factory=dict)  # in order of use

    def def_kernel(self, *inputs: str) -> str:
        if len(inputs) != len(self.ranks):
            raise TypeError(f"the template takes {', '.join(inputs)}; it is given {len(self.ranks)} tensors")
        self.inputs = inputs
        return _DEFINITION  # filled in at the end, when all arguments are known

    def size(self, tensor: str | None, dim: int) -> str:
        """A size of an input, or of the output (None)."""
        number = self._number(tensor or OUTPUT, "size", dim)
        return f"tl.full([], {number}, dtype=INDEX_DTYPE)" if self.wide else number

    def stride(self, tensor: str, dim: int | None = None) -> str:
        rank = self.ranks[self.inputs.index(tensor)]
        return ", ".join(self._number(tensor, "stride", i) for i in (range(rank) if dim is None else [dim]))

    def store_output(
        self, indices: tuple[str, ...], value: str, mask: str, val_shape: tuple[str, ...]
    ) -> str:
        terms = (f"{index} * {self._number(OUTPUT, 'stride', i)}" for i, index in enumerate(indices))
        # If one value goes to one address, the offset is no block yet.
        offset = f"tl.broadcast_to({' + '.join(terms)}, [{', '.join(val_shape)}])"
        return f"tl.store({OUTPUT} + {offset}, {value}, mask={mask})"

    def _number(self, tensor: str, what: str, dim: int) -> str:
        number = Number(tensor, what, dim)
        self.numbers[number] = None
        return str(number)


def render(template: Template, constants: dict[str, object], ranks: tuple[int, ...], wide: bool) -> Source:
    """The kernel of a template for inputs with `ranks` dimensions.

    constants: every name that the template leaves open; jinja may branch on their values. wide: offsets are
    64 bit. Raises jinja2.UndefinedError if a name is missing.
    """
    import jinja2

    hooks = _Hooks(ranks, wide)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    named = {name: getattr(hooks, name) for name in ("def_kernel", "size", "stride", "store_output")}
    body = environment.from_string(template.source).render(**named, **constants)
    name = f"vsa_{template.name}"
    arguments = [*hooks.inputs, OUTPUT, *map(str, hooks.numbers), *(f"{c}: tl.constexpr" for c in constants)]
    listed = "".join(f"    {argument},\n" for argument in arguments)
    sizes = [str(number) for number in hooks.numbers if number.what == "size"]
    definition = (
        "import triton\nimport triton.language as tl\n\n\n"
        f"@triton.jit(do_not_specialize={sizes})\ndef {name}(\n{listed}):\n"
        f"    INDEX_DTYPE: tl.constexpr = {'tl.int64' if wide else 'tl.int32'}"
    )
    text = body.replace(_DEFINITION, definition, 1)
    return Source(name, text, hooks.inputs, tuple(hooks.numbers), tuple(constants))


@functools.cache
def load(source: Source) -> Callable:
    """The triton.jit function of a rendered kernel. Raises ImportError without triton.

    Triton reads the text of a kernel through `inspect`, and keys its compilation cache by it. The text is put
    into `linecache` under a name that no file has, so that nothing is written to disk.
    """
    digest = hashlib.sha256(source.text.encode()).hexdigest()
    name = f"<vsa_compile {source.name} {digest[:16]}>"
    # Without a modification time linecache never looks for a file.
    linecache.cache[name] = (len(source.text), None, source.text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": source.name}
    exec(compile(source.text, name, "exec"), namespace)
    return namespace[source.name]
