"""The edge between messages and the model, as servicers use it."""

from __future__ import annotations

from typing import Any

from swarm.api import codec


def encoded(value: object) -> Any:
    """Return a model object's message; typed loosely, since which one follows from the object's class."""
    return codec.encode(value)
