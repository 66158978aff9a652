"""Placement constraints, as docker writes them: ``node.role==worker``, ``node.labels.disk!=ssd``.

Source: the constraint expressions of ``docker service create --constraint``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from swarm.api.docker.swarmkit import specs_pb2
from swarm.errors import InvalidArgumentError
from swarm.model import Node

_FORM: Final = re.compile(r"\s*([a-zA-Z0-9_.\-/]+)\s*(==|!=)\s*(\S(?:.*\S)?)\s*")
_KEYS: Final = frozenset(
    {"node.id", "node.hostname", "node.role", "node.platform.os", "node.platform.arch"}
)
_NODE_LABEL: Final = "node.labels."
_ENGINE_LABEL: Final = "engine.labels."


@lru_cache(maxsize=1024)
def parse(text: str) -> tuple[str, bool, str]:
    """Return (key, whether it must be equal, value) of one constraint.

    Raises:
        InvalidArgumentError: it is malformed, or of an unknown key.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InvalidArgumentError(f"constraint {text!r} is not of the form key==value, key!=value")
    key, operator, value = found.groups()
    if key not in _KEYS and not key.startswith((_NODE_LABEL, _ENGINE_LABEL)):
        raise InvalidArgumentError(f"constraint {text!r}: {key} says nothing about nodes")
    return key, operator == "==", value


def allows(placement: bytes | None, node: Node) -> bool:
    """Say whether a service's placement allows a node; a constraint nobody understands allows none."""
    if not placement:
        return True
    parsed = specs_pb2.Placement.FromString(placement)
    try:
        constraints = [parse(text) for text in parsed.constraints]
    except InvalidArgumentError:
        return False
    if not all(_holds(node, *each) for each in constraints):
        return False
    platform = node.description.platform if node.description else None
    return not parsed.platforms or any(
        platform is not None
        and each.os in {"", platform.os}
        and each.architecture in {"", platform.architecture}
        for each in parsed.platforms
    )


def _holds(node: Node, key: str, equal: bool, value: str) -> bool:
    found = _value(node, key)
    return (found.lower() == value.lower()) is equal


def _value(node: Node, key: str) -> str:
    description = node.description
    if key.startswith(_NODE_LABEL):
        return node.spec.annotations.labels.get(key.removeprefix(_NODE_LABEL), "")
    if key.startswith(_ENGINE_LABEL):
        engine = description.engine if description else None
        return engine.labels.get(key.removeprefix(_ENGINE_LABEL), "") if engine else ""
    platform = description.platform if description else None
    return {
        "node.id": node.id,
        "node.hostname": description.hostname if description else "",
        "node.role": node.role.name.lower(),
        "node.platform.os": platform.os if platform else "",
        "node.platform.arch": platform.architecture if platform else "",
    }[key]
