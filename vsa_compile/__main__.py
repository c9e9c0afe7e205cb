"""The command line: `python -m vsa_compile {explain, bench, doctor}`.

Bad input is one line on stderr and exit status 2. What the user's own code raises keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn

from . import errors
from .backend import read_options
from .report.explain import explain
from .tools import doctor
from .tools.bench import command as bench


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help shows what is allowed\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 1 if doctor found a problem, 2 for bad input."""
    parser = _Parser(prog="python -m vsa_compile", description="Sparse video attention for torch.compile.")
    commands = parser.add_subparsers(title="commands")
    _add_explain(commands)
    bench.add(commands)
    _add_doctor(commands)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    try:
        text, status = arguments.run(arguments)
    except errors.VsaError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(text)
    return status


def _add_explain(commands: Any) -> None:
    about = "which attention calls of a model become sparse, and why the others stay dense"
    command = commands.add_parser("explain", help=about, description=f"Print {about}.")
    command.add_argument("factory", metavar="module:factory", help=errors.FACTORY)
    command.add_argument("--options", default="{}", help="the backend's options as a JSON object")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> tuple[str, int]:
    """The report as text. With --json, what the user's code prints goes to stderr: stdout is JSON alone."""
    options = _options(arguments.options)
    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        model, args, kwargs = _built(arguments.factory)
        report = explain(model, *args, options=options, **kwargs)
    return report.to_json() if arguments.json else str(report), 0


def _add_doctor(commands: Any) -> None:
    about = "what this installation will run where, and what is wrong with it"
    command = commands.add_parser(
        "doctor", help=about, description=f"Print {about}. Exit status 1 if anything is."
    )
    command.set_defaults(run=lambda _: doctor.examine())


def _options(text: str) -> dict[str, Any]:
    """The options, checked before the model is built, which may take minutes."""
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise errors.OptionError(errors.not_json("--options", text, str(error))) from error
    read_options(options)
    return options


def _built(path: str) -> tuple[Callable, Sequence[Any], Mapping[str, Any]]:
    """The model and its arguments, from the factory at `module:factory`."""
    built = _factory(path)()
    match built:
        case (model, dict(kwargs)) if callable(model):
            return model, (), kwargs
        case (model, tuple(args)) if callable(model):
            return model, args, {}
        case (model, tuple(args), dict(kwargs)) if callable(model):
            return model, args, kwargs
    raise errors.ArgumentError(errors.not_built(path, built))


def _factory(path: str) -> Callable[[], Any]:
    """The callable at `module:factory`; the current directory is searched for modules first."""
    name, _, attribute = path.partition(":")
    if not name or not attribute:
        raise errors.ArgumentError(
            errors.bad_value("the factory", path, errors.FACTORY, errors.FACTORY_EXAMPLE)
        )
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, but imports one that is not
        raise errors.ArgumentError(errors.no_module(name, os.getcwd())) from error
    finally:
        sys.path.remove(os.getcwd())
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")]
            raise errors.ArgumentError(errors.no_attribute(path, part, public))
        found = getattr(found, part)
    if not callable(found):
        raise errors.ArgumentError(errors.bad_value(path, found, errors.FACTORY, errors.FACTORY_EXAMPLE))
    return found


if __name__ == "__main__":
    sys.exit(main())
