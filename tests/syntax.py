"""Finds a place in a source file by its syntax: the function that holds it, and the code in it.

Layout, comments, parentheses and quotes do not matter, so that a formatter or a moved line changes nothing.
Python is matched as a tree. In a pattern, `...` stands for any expression, and at the end of arguments, of a
list or of a body for all that follow. What is no Python (C++), or only a part of a tree, is matched as a run
of tokens.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass


class NoPlaceError(AssertionError):
    """The code is not there, or there more than once."""


@dataclass(frozen=True)
class Place:
    """Characters [start, stop) of a text: an expression, statements that begin at a column, or tokens."""

    start: int
    stop: int
    indent: int | None = None
    expression: bool = False


def replaced(text: str, right: str, wrong: str, *, language: str, within: str = "", nth: int = 0) -> str:
    """`text` with `wrong` for the one place that says `right` in the function or class `within`.

    `nth` counts from 1 and picks one of several places. Raises NoPlaceError for none, or for several.
    """
    found = places(text, right, language=language, within=within)
    where = f"{within or 'the file'} says {right!r}"
    if not found:
        raise NoPlaceError(f"{where} nowhere")
    if nth > len(found) or (not nth and len(found) > 1):
        lines = ", ".join(str(text.count("\n", 0, place.start) + 1) for place in found)
        raise NoPlaceError(f"{where} {len(found)} times (lines {lines}); name a function or the nth")
    return _put(text, found[max(nth, 1) - 1], wrong)


def places(text: str, right: str, *, language: str, within: str = "") -> list[Place]:
    """All places of `right`, in order. `language`: "python" or "c++"."""
    if language == "python":
        found = _in_tree(text, right, within)
        if found:
            return found
    start, stop = _scope(text, within, language)
    return [Place(start + a, start + b) for a, b in _in_tokens(text[start:stop], right)]


def _put(text: str, place: Place, wrong: str) -> str:
    if place.indent is not None:
        wrong = textwrap.indent(textwrap.dedent(wrong).strip() or "pass", " " * place.indent).lstrip()
    elif place.expression:
        wrong = f"({wrong})"
    return text[: place.start] + wrong + text[place.stop :]


# Python, as a tree.


def _in_tree(text: str, right: str, within: str) -> list[Place]:
    pattern = _parsed(right)
    if pattern is None:
        return []
    scope = _definition(ast.parse(text), within)
    starts = _line_starts(text)

    def place(first: ast.AST, last: ast.AST, indent: int | None) -> Place:
        start, stop = (first.lineno, first.col_offset), (last.end_lineno, last.end_col_offset)
        return Place(_at(starts, *start), _at(starts, *stop), indent, expression=indent is None)

    if isinstance(pattern, ast.expr):
        alone = {id(n.value) for n in ast.walk(scope) if isinstance(n, ast.Expr)}
        found = [n for n in ast.walk(scope) if isinstance(n, ast.expr) and _same(pattern, n)]
        places = [place(n, n, n.col_offset if id(n) in alone else None) for n in found]
    else:
        places = [
            place(body[i], body[i + len(pattern) - 1], body[i].col_offset)
            for body in _bodies(scope)
            for i in range(len(body) - len(pattern) + 1)
            if all(_same(p, n) for p, n in zip(pattern, body[i:], strict=False))
        ]
    return sorted(places, key=lambda place: place.start)


def _parsed(code: str) -> ast.expr | list[ast.stmt] | None:
    code = textwrap.dedent(code).strip()
    try:
        return ast.parse(code, mode="eval").body
    except SyntaxError:
        pass
    try:
        return ast.parse(code).body
    except SyntaxError:
        return None


def _definition(tree: ast.AST, within: str) -> ast.AST:
    for name in filter(None, within.split(".")):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        inner = [n for n in ast.walk(tree) if isinstance(n, kinds) and n.name == name and n is not tree]
        if len(inner) != 1:
            raise NoPlaceError(f"{len(inner)} definitions of {name!r} (of {within!r})")
        tree = inner[0]
    return tree


def _bodies(scope: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(scope):
        for _, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield value


def _is_hole(pattern: object) -> bool:
    if isinstance(pattern, ast.Expr):
        pattern = pattern.value
    return isinstance(pattern, ast.Constant) and pattern.value is ...


def _same(pattern: object, node: object) -> bool:
    """Whether a tree has the shape of the pattern."""
    if isinstance(pattern, list):
        if not isinstance(node, list):
            return False
        if pattern and _is_hole(pattern[-1]):
            pattern = pattern[:-1]
            node = node[: len(pattern)]
        return len(pattern) == len(node) and all(map(_same, pattern, node))
    if _is_hole(pattern) and isinstance(node, ast.expr):
        return True
    if type(pattern) is not type(node):
        return False
    if not isinstance(pattern, ast.AST):
        return pattern == node
    ignored = ["ctx", "type_comment", "kind"]
    if isinstance(pattern, ast.Call) and pattern.args and _is_hole(pattern.args[-1]):
        ignored += [] if pattern.keywords else ["keywords"]
    fields = (name for name in pattern._fields if name not in ignored)
    return all(_same(getattr(pattern, name), getattr(node, name)) for name in fields)


def _line_starts(text: str) -> list[tuple[int, str]]:
    starts, at = [], 0
    for line in text.splitlines(keepends=True):
        starts.append((at, line))
        at += len(line)
    return starts


def _at(starts: list[tuple[int, str]], line: int, column: int) -> int:
    """The character of a position whose column is counted in bytes."""
    at, text = starts[line - 1]
    return at + len(text.encode()[:column].decode())


# Anything else, as tokens.

_TOKEN = re.compile(r"\w+|[^\w\s]")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def _tokens(text: str) -> list[re.Match[str]]:
    """Names, numbers and single characters of punctuation; those of strings and remarks too."""
    return list(_TOKEN.finditer(text))


def _in_tokens(text: str, right: str) -> Iterator[tuple[int, int]]:
    wanted, tokens = [match[0] for match in _tokens(right)], _tokens(text)
    words = [match[0] for match in tokens]
    at = 0
    while at + len(wanted) <= len(words):
        if words[at : at + len(wanted)] == wanted:
            yield tokens[at].start(), tokens[at + len(wanted) - 1].end()
            at += len(wanted)
        else:
            at += 1


def _scope(text: str, within: str, language: str) -> tuple[int, int]:
    """The characters of a definition."""
    if not within:
        return 0, len(text)
    if language == "python":
        node, starts = _definition(ast.parse(text), within), _line_starts(text)
        return _at(starts, node.lineno, node.col_offset), _at(starts, node.end_lineno, node.end_col_offset)
    start, inner, stop = 0, 0, len(text)
    for name in within.split("."):
        found = list(_braced(text, name, inner, stop))
        if len(found) != 1:
            raise NoPlaceError(f"{len(found)} definitions of {name!r} (of {within!r})")
        start, inner, stop = found[0]
    return start, stop


def _braced(text: str, name: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where every definition `name(...) ... {...}`, or `struct name {...}`, of C++ starts, opens and stops.

    A constructor is found inside its own struct alone.
    """
    name = re.escape(name)  # operator()
    heads = re.compile(rf"\b(?:struct|class)\s+{name}\b[^;{{}}]*\{{|(?<![.>\w]){name}\s*(?=\()")
    between = re.compile(r"(?:const|noexcept|\s|->[^;{]*|:[^;{]*)*\{")
    while head := heads.search(text, start, stop):
        start, at = head.end(), head.end() - 1
        if text[at] != "{":
            body = between.match(text, _closed(text, head.end()))
            if body is None:
                continue
            at = body.end() - 1
        start = _closed(text, at)
        yield head.start(), at, start


def _closed(text: str, at: int) -> int:
    """Where the bracket that opens at `at` has closed."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] in _BRACKETS) - (text[i] in _BRACKETS.values())
        if not depth:
            return i + 1
    raise NoPlaceError("a bracket that never closes")
