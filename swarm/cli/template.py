"""The part of Go's templates that people use with ``--format``.

Actions: ``{{.Field.Sub}}``, ``{{json .}}``, ``{{len .X}}``, ``{{index .X "key"}}``, ``{{upper .X}}``,
``{{lower .X}}``, ``{{title .X}}``, ``{{join .X ", "}}``, ``{{println .X}}``, ``{{range .X}} .. {{else}}
.. {{end}}``, ``{{if .X}} .. {{else}} .. {{end}}``, ``{{with .X}} .. {{end}}``, and pipelines with ``|``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from swarm.errors import InvalidArgumentError

_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
MAX_TEXT: Final = 16_384
"""Longest template taken, characters."""


class TemplateError(InvalidArgumentError):
    """The template cannot be understood, or names a field that is not there."""


@dataclass(slots=True)
class _Block:
    """A list of literal texts and actions; a control action has a body and an alternative."""

    action: str = ""
    body: list[str | _Block] = field(default_factory=list)
    otherwise: list[str | _Block] | None = None


def render(template: str, value: object) -> str:
    """Return the template's text for one value (nested dicts, lists, scalars).

    Raises:
        TemplateError: a part of the template cannot be understood, or a field does not exist.
    """
    if len(template) > MAX_TEXT:
        raise TemplateError(f"the template is longer than {MAX_TEXT} characters")
    return "".join(_run(_parse(template), value))


def fields(template: str) -> list[str]:
    """Return the top-level field names that a template uses, in order."""
    return [
        word[1:].split(".", maxsplit=1)[0]
        for match in _ACTION.finditer(template)
        for word in _WORD.findall(match[2])
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
        action = match[2]
        if action == "end":
            if len(stack) == 1:
                raise TemplateError("the template has an {{end}} too many")
            stack.pop()
        elif action == "else":
            if len(stack) == 1 or stack[-1].otherwise is not None:
                raise TemplateError("the template has an {{else}} in a place of its own")
            stack[-1].otherwise = []
        elif not action.startswith("/*"):
            block = _Block(action)
            _append(stack[-1], block)
            if action.split(maxsplit=1)[:1] in (["range"], ["if"], ["with"]):
                stack.append(block)
    if len(stack) > 1:
        raise TemplateError(f"the template lacks an {{{{end}}}} for {{{{{stack[-1].action}}}}}")
    rest = template[place:]
    if "{{" in rest:
        raise TemplateError("the template has a {{ without its }}")
    _append(root, rest.lstrip() if trim else rest)
    return root.body


def _append(block: _Block, part: str | _Block) -> None:
    (block.body if block.otherwise is None else block.otherwise).append(part)


def _run(parts: Sequence[str | _Block], value: object) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        keyword, _, rest = part.action.partition(" ")
        if keyword == "range":
            items = _evaluate(rest, value)
            each = list(items.values()) if isinstance(items, Mapping) else list(items or ())
            for item in each:
                yield from _run(part.body, item)
            if not each:
                yield from _run(part.otherwise or (), value)
        elif keyword in {"if", "with"}:
            condition = _evaluate(rest, value)
            inner = condition if keyword == "with" and condition else value
            yield from _run(part.body if condition else part.otherwise or (), inner)
        else:
            yield _text(_evaluate(part.action, value))


def _evaluate(expression: str, value: object) -> Any:
    result: Any = None
    for number, stage in enumerate(expression.split("|")):
        words = _WORD.findall(stage)
        if not words:
            raise TemplateError(f"an empty step in {{{{{expression}}}}}")
        extra = [result] if number else []
        if words[0] in _FUNCTIONS:
            arguments = [_operand(word, value) for word in words[1:]] + extra
            try:
                result = _FUNCTIONS[words[0]](*arguments)
            except (TypeError, KeyError, IndexError) as error:
                raise TemplateError(
                    f"{{{{{stage.strip()}}}}} does not work here: {error}"
                ) from error
        elif len(words) == 1 and not extra:
            result = _operand(words[0], value)
        else:
            raise TemplateError(f"unknown function {words[0]!r} in the template")
    return result


def _operand(word: str, value: object) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.lstrip("-").isdigit():
        return int(word)
    if word in {"true", "false"}:
        return word == "true"
    if not word.startswith("."):
        raise TemplateError(f"{word!r} is neither a field, a text nor a function")
    current: Any = value
    for name in word.split(".")[1:]:
        if not name:
            continue
        if not isinstance(current, Mapping) or name not in current:
            known = ", ".join(sorted(map(str, current))) if isinstance(current, Mapping) else "none"
            raise TemplateError(f"no field {name!r} in {{{{{word}}}}} (fields: {known})")
        current = current[name]
    return current


def _text(value: object) -> str:
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_text(item)}" for key, item in value.items()) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(_text, value)) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value[key]
    return value


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "len": len,
    "index": _index,
    "upper": lambda value: str(value).upper(),
    "lower": lambda value: str(value).lower(),
    "title": lambda value: str(value).title(),
    "join": lambda value, separator: str(separator).join(map(_text, value)),
    "println": lambda *values: " ".join(map(_text, values)) + "\n",
    "print": lambda *values: "".join(map(_text, values)),
}
