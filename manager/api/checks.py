"""Checks several RPCs share: required fields, versions, labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import Message

from manager.api.errors import SequenceError
from swarm.errors import InvalidArgumentError
from swarm.model import Meta

MAX_ID: Final = 128
"""Longest id or name in a request, characters; ours have 25, container ids 64."""

MAX_LABELS: Final = 1024
MAX_LABEL: Final = 64 * 1024
"""Longest label key and value together, characters."""


def required(value: str, what: str) -> str:
    """Return a text that must be there.

    Raises:
        InvalidArgumentError: it is empty, or longer than any real one.
    """
    if not value:
        raise InvalidArgumentError(f"{what} must be provided")
    if len(value) > MAX_ID:
        raise InvalidArgumentError(f"{what} is longer than {MAX_ID} characters")
    return value


def present(request: Any, field: str) -> Any:
    """Return a message field that must be there.

    Raises:
        InvalidArgumentError: it is absent.
    """
    message: Message = request
    if not message.HasField(field):
        raise InvalidArgumentError(f"{field.replace('_', ' ')} must be provided")
    return getattr(request, field)


def same_version(meta: Meta, index: int) -> None:
    """Check that a caller saw the newest version of what it changes.

    Raises:
        SequenceError: it did not.
    """
    if meta.version.index != index:
        raise SequenceError


def check_labels(labels: Mapping[str, str]) -> None:
    """Check the size of labels.

    Raises:
        InvalidArgumentError: too many, too long, or without a key.
    """
    if len(labels) > MAX_LABELS:
        raise InvalidArgumentError(f"there are more than {MAX_LABELS} labels")
    for key, value in labels.items():
        if not key:
            raise InvalidArgumentError("a label has no key")
        if len(key) + len(value) > MAX_LABEL:
            raise InvalidArgumentError(f"the label {key[:64]!r} is longer than {MAX_LABEL}")
