"""Finds the kernel templates, inside an installed wheel or at the top of a source tree."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.resources.abc import Traversable

_SUFFIX = ".py.jinja"


@functools.cache
def template_folder() -> Traversable:
    """The folder of the *.py.jinja files: `_templates` of a wheel, else `templates` of the source tree."""
    package = files(__name__.partition(".")[0])
    source_tree = Path(__file__).resolve().parents[3] / "templates"
    for folder in (package / "_templates", source_tree):
        if folder.is_dir() and any(item.name.endswith(_SUFFIX) for item in folder.iterdir()):
            return folder
    raise FileNotFoundError(
        f"no kernel template (*{_SUFFIX}) in {package / '_templates'} or {source_tree}: the installation of "
        "vsa_compile is incomplete. Reinstall it from a wheel, or install the source tree in editable mode."
    )


def template_files() -> tuple[Traversable, ...]:
    """All template files, sorted by name; their content must be part of every compilation cache key."""
    found = (item for item in template_folder().iterdir() if item.name.endswith(_SUFFIX))
    return tuple(sorted(found, key=lambda item: item.name))


def template_source(name: str) -> str:
    """The text of template `name` (without extension)."""
    return (template_folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


class Template(NamedTuple):
    """A kernel's template.

    programs(*sizes, meta, cdiv=...) -> its launch grid (x, y, z), from the sizes that a call gives and the
    constants of its configuration.
    """

    name: str
    programs: Callable[..., tuple]

    @property
    def source(self) -> str:
        """Its text, with the shared functions appended.

        Docstrings are removed: cpp_wrapper writes kernels into a Python string, which their quotes would end.
        """
        text = template_source(self.name) + template_source("notation")
        return re.sub(r'^ *""".*?"""\n', "", text, flags=re.MULTILINE | re.DOTALL)
