"""The part of Go's templates that people use with ``--format``.

Actions: fields ``{{.Field.Sub}}``, variables ``{{$x := .Field}}``, ``{{range .X}} .. {{else}} .. {{end}}`` and
``{{range $key, $value := .X}}``, ``{{if .X}} .. {{else if .Y}} .. {{else}} .. {{end}}``, ``{{with .X}} .. {{end}}``,
comments, trimming with ``{{-`` and ``-}}``, pipelines with ``|`` and parentheses. Functions: Go's ``and or not eq
ne lt le gt ge len index slice print printf println`` and docker's ``json join split lower upper title pad truncate``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from swarm.cli.expression import Scope, TemplateError, evaluate, text_of, tokens

__all__ = ["MAX_TEXT", "TemplateError", "fields", "render"]

_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_ASSIGN = re.compile(r"\s*(\$\w+)(?:\s*,\s*(\$\w+))?\s*:?=(.*)", re.DOTALL)
MAX_TEXT: Final = 16_384
"""Longest template taken, characters."""
MAX_BLOCKS: Final = 64
"""Blocks within each other."""


@dataclass(slots=True)
class _Block:
    """A list of literal texts and actions; a control action has a body and an alternative."""

    action: str = ""
    chained: bool = False
    """An ``else if``: it ends with the block that it is the alternative of."""
    body: list[str | _Block] = field(default_factory=list)
    otherwise: list[str | _Block] | None = None


def render(template: str, value: object) -> str:
    """Return the template's text for one value (nested dicts, lists, scalars).

    Raises:
        TemplateError: a part of the template cannot be understood, or a field does not exist.
    """
    if len(template) > MAX_TEXT:
        raise TemplateError(f"the template is longer than {MAX_TEXT} characters")
    return "".join(_run(_parse(template), Scope(value, value)))


def fields(template: str) -> list[str]:
    """Return the top-level field names that a template uses, in order."""
    return [
        word[1:].split(".", maxsplit=1)[0]
        for match in _ACTION.finditer(template)
        for word in tokens(match[2])
        if word.startswith(".") and len(word) > 1
    ]


def _parse(template: str) -> list[str | _Block]:
    root = _Block()
    stack = [root]
    place, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[place : match.start()]
        text = text.lstrip() if trim else text
        _append(stack[-1], text.rstrip() if match[1] else text)
        place, trim = match.end(), bool(match[3])
        _open_or_close(stack, match[2])
        if len(stack) > MAX_BLOCKS:
            raise TemplateError(f"more than {MAX_BLOCKS} blocks within each other")
    if len(stack) > 1:
        raise TemplateError(f"the template lacks an {{{{end}}}} for {{{{{stack[-1].action}}}}}")
    rest = template[place:]
    if "{{" in rest:
        raise TemplateError("the template has a {{ without its }}")
    _append(root, rest.lstrip() if trim else rest)
    return root.body


def _open_or_close(stack: list[_Block], action: str) -> None:
    words = action.split(maxsplit=2)
    if action == "end":
        if len(stack) == 1:
            raise TemplateError("the template has an {{end}} too many")
        while stack.pop().chained:
            pass
    elif words[:1] == ["else"]:
        if len(stack) == 1 or stack[-1].otherwise is not None:
            raise TemplateError("the template has an {{else}} in a place of its own")
        if words[1:2] not in ([], ["if"]):
            raise TemplateError(f"{{{{{action}}}}} is not understood")
        stack[-1].otherwise = []
        if len(words) > 1:
            block = _Block(action.removeprefix("else").strip(), chained=True)
            _append(stack[-1], block)
            stack.append(block)
    elif not action.startswith("/*"):
        block = _Block(action)
        _append(stack[-1], block)
        if words[:1] in (["range"], ["if"], ["with"]):
            stack.append(block)


def _append(block: _Block, part: str | _Block) -> None:
    (block.body if block.otherwise is None else block.otherwise).append(part)


def _run(parts: Sequence[str | _Block], scope: Scope) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        keyword, _, rest = part.action.partition(" ")
        if keyword in {"range", "if", "with"}:
            names, value = _assigned(rest, scope)
            control = _range if keyword == "range" else _if if keyword == "if" else _with
            yield from control(part, names, value, scope)
            continue
        names, value = _assigned(part.action, scope)
        if not names:
            yield text_of(value)
        elif len(names) > 1:
            raise TemplateError(f"{{{{{part.action}}}}} gives one value two names")
        else:
            scope.variables[names[0]] = value


def _assigned(expression: str, scope: Scope) -> tuple[list[str], Any]:
    """Return the variables that an expression's value is to have, and the value."""
    match = _ASSIGN.fullmatch(expression)
    if match is None:
        return [], evaluate(expression, scope)
    return [name for name in match.group(1, 2) if name], evaluate(match[3], scope)


def _range(block: _Block, names: list[str], value: Any, scope: Scope) -> Iterator[str]:
    if isinstance(value, Mapping):
        items = sorted(value.items(), key=lambda item: str(item[0]))
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    elif value is None:
        items = []
    else:
        raise TemplateError(f"range can't iterate over {text_of(value):.40}")
    for key, item in items:
        inner = scope.inner(item)
        if names:
            inner.variables[names[-1]] = item
        if len(names) > 1:
            inner.variables[names[0]] = key
        yield from _run(block.body, inner)
    if not items:
        yield from _run(block.otherwise or (), scope.inner(scope.dot))


def _if(block: _Block, names: list[str], value: Any, scope: Scope) -> Iterator[str]:
    inner = scope.inner(scope.dot)
    inner.variables.update((name, value) for name in names)
    yield from _run(block.body if value else block.otherwise or (), inner)


def _with(block: _Block, names: list[str], value: Any, scope: Scope) -> Iterator[str]:
    inner = scope.inner(value or scope.dot)
    inner.variables.update((name, value) for name in names)
    yield from _run(block.body if value else block.otherwise or (), inner)
