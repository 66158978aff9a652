"""What stands between ``{{`` and ``}}`` of a Go-style template: operands, functions, pipelines.

Pure. Text comes from whoever types a command; its length is bounded by :mod:`swarm.cli.template`, the nesting
of parentheses and the width of padding here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from swarm.errors import InvalidArgumentError

MAX_DEPTH: Final = 32
"""Parentheses within each other."""
MAX_WIDTH: Final = 1024
"""Spaces that one padding may make."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|:=|[(),|]|[^\s(),|"`]+|.', re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,18}")
_VERB = re.compile(r"%([-+ 0]*)(\d{0,4})(?:\.(\d{1,3}))?(.)", re.DOTALL)
_NOTHING: Final = object()


class TemplateError(InvalidArgumentError):
    """The template cannot be understood, or names a field that is not there."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What names mean at one place of a template."""

    dot: Any
    root: Any
    variables: dict[str, Any] = field(default_factory=dict)

    def inner(self, dot: Any) -> Scope:
        """Return the scope of a block inside this one."""
        return Scope(dot, self.root, dict(self.variables))


@dataclass(frozen=True, slots=True)
class _Word:
    """A bare word: the name of a function, or a mistake."""

    text: str


def evaluate(expression: str, scope: Scope) -> Any:
    """Return what an expression means.

    Raises:
        TemplateError: a part cannot be understood, or a field does not exist.
    """
    return _Reader(expression).whole(scope)


def tokens(expression: str) -> list[str]:
    """Return the parts of an expression."""
    return [match[0] for match in _TOKEN.finditer(expression) if not match[0].isspace()]


def text_of(value: object) -> str:
    """Return a value as Go prints it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{text_of(item)}" for key, item in value.items()) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(text_of, value)) + "]"
    return str(value)


class _Reader:
    """Reads and evaluates one expression, left to right."""

    def __init__(self, expression: str) -> None:
        self._text = expression
        found = [match for match in _TOKEN.finditer(expression) if not match[0].isspace()]
        self._tokens = [match[0] for match in found]
        self._glued = [
            match.start() > 0 and not expression[match.start() - 1].isspace() for match in found
        ]
        self._place = 0
        self._depth = 0

    def whole(self, scope: Scope) -> Any:
        value = self._pipeline(scope)
        if self._place < len(self._tokens):
            raise TemplateError(f"{self._tokens[self._place]!r} is out of place in {self._text!r}")
        return value

    def _peek(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _pipeline(self, scope: Scope) -> Any:
        value: Any = _NOTHING
        while True:
            value = self._command(scope, value)
            if self._peek() != "|":
                return value
            self._place += 1

    def _command(self, scope: Scope, piped: Any) -> Any:
        operands: list[Any] = []
        while self._peek() not in {"", "|", ")", ",", ":="}:
            operands.append(self._operand(scope))
        if not operands:
            raise TemplateError(f"an empty step in {{{{{self._text}}}}}")
        first, *rest = operands
        arguments = rest if piped is _NOTHING else [*rest, piped]
        for each in rest:
            if isinstance(each, _Word):
                raise TemplateError(f"{each.text!r} is neither a field, a text nor a function")
        if isinstance(first, _Word):
            return self._call(first.text, arguments)
        if arguments:
            raise TemplateError(f"{text_of(first)!r:.40} is no function, and takes no arguments")
        return first

    def _call(self, name: str, arguments: list[Any]) -> Any:
        function = FUNCTIONS.get(name)
        if function is None:
            what = "unknown function" if arguments else "neither a field, a text nor a function:"
            raise TemplateError(f"{what} {name!r} in the template")
        try:
            return function(*arguments)
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise TemplateError(
                f"{{{{{self._text.strip()}}}}} does not work here: {error}"
            ) from error

    def _operand(self, scope: Scope) -> Any:
        word = self._peek()
        self._place += 1
        if word == "(":
            value = self._parenthesis(scope)
            while self._peek().startswith(".") and self._glued[self._place]:
                value = _member(value, self._peek(), self._peek())
                self._place += 1
            return value
        if word[0] in '"`':
            return _literal(word)
        if _NUMBER.fullmatch(word):
            return int(word)
        if word in {"true", "false"}:
            return word == "true"
        if word == "nil":
            return None
        if word.startswith("$"):
            name, dot, rest = word.partition(".")
            if name != "$" and name not in scope.variables:
                raise TemplateError(f"undefined variable {name!r} in the template")
            value = scope.root if name == "$" else scope.variables[name]
            return _member(value, dot + rest, word)
        if word.startswith("."):
            return _member(scope.dot, word, word)
        return _Word(word)

    def _parenthesis(self, scope: Scope) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateError(f"more than {MAX_DEPTH} parentheses within each other")
        value = self._pipeline(scope)
        if self._peek() != ")":
            raise TemplateError(f"a ( without its ) in {self._text!r}")
        self._place += 1
        self._depth -= 1
        return value


def _literal(word: str) -> str:
    if word[0] == "`":
        return word[1:-1]
    try:
        return str(json.loads(word, strict=False))
    except ValueError:
        raise TemplateError(f"{word} is not a text") from None


def _member(value: Any, path: str, shown: str) -> Any:
    for name in path.split(".")[1:]:
        if not name:
            continue
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else "none"
            raise TemplateError(f"no field {name!r} in {{{{{shown}}}}} (fields: {known})")
        value = value[name]
    return value


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            # Go gives the zero value of a map's type for a key that is not there.
            plain = all(isinstance(item, str) for item in value.values())
            value = value.get(key, "" if plain else None)
        else:
            value = value[key]
    return value


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TypeError("missing argument for comparison")
    return first in others


def _first(values: tuple[Any, ...], *, wanted: bool) -> Any:
    if not values:
        raise TypeError("missing arguments")
    return next((value for value in values if bool(value) is wanted), values[-1])


def _pad(text: Any, before: int, after: int) -> str:
    if not text:
        return str(text)
    return f"{' ' * min(before, MAX_WIDTH)}{text}{' ' * min(after, MAX_WIDTH)}"


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def verb(match: re.Match[str]) -> str:
        flags, width, precision, kind = match.groups()
        if kind == "%":
            return "%"
        if kind not in "vsdqtxXfg":
            raise ValueError(f"%{kind} is not understood")
        if not left:
            return f"%!{kind}(MISSING)"
        value = left.pop(0)
        if kind == "q":
            text = json.dumps(text_of(value))
        elif kind in "xXfg":
            text = format(value, (f".{precision}" if precision and kind in "fg" else "") + kind)
        else:
            text = text_of(value)[: int(precision) if precision and kind == "s" else None]
        space = min(int(width or 0), MAX_WIDTH)
        if "-" in flags:
            return text.ljust(space)
        return text.rjust(space, "0" if "0" in flags and kind in "dxXfg" else " ")

    return _VERB.sub(verb, form)


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "len": len,
    "index": _index,
    "slice": lambda value, start=0, end=None: value[start:end],
    "upper": lambda value: str(value).upper(),
    "lower": lambda value: str(value).lower(),
    "title": lambda value: str(value).title(),
    "join": lambda value, separator: str(separator).join(map(text_of, value)),
    "split": lambda text, separator: str(text).split(separator),
    "pad": _pad,
    "truncate": lambda text, length: str(text)[:length],
    "println": lambda *values: " ".join(map(text_of, values)) + "\n",
    "print": lambda *values: "".join(map(text_of, values)),
    "printf": _printf,
    "eq": _equal,
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
    "and": lambda *values: _first(values, wanted=False),
    "or": lambda *values: _first(values, wanted=True),
    "not": lambda value: not value,
}
"""Go's own and docker's."""
