"""The unlock key: 32 bytes that open a locked manager, in the form a person keeps them.

Text form: ``SWMKEY-1-`` and standard base64 without padding. Source: SwarmKit ``manager/encryption``.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable
from typing import Final

from swarm.errors import InvalidArgumentError

KEY_BYTES: Final = 32
PREFIX: Final = "SWMKEY-1-"
_TEXT_LENGTH: Final = 43


class UnlockKeyError(InvalidArgumentError):
    """The text is not an unlock key; the message says what is wrong with it."""


def new_unlock_key(entropy: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """Make a new unlock key, 32 bytes."""
    return entropy(KEY_BYTES)


def format_unlock_key(key: bytes) -> str:
    """Write an unlock key (32 bytes) as text.

    Raises:
        UnlockKeyError: the key does not have 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise UnlockKeyError(f"an unlock key has {KEY_BYTES} bytes, this one has {len(key)}")
    return PREFIX + base64.b64encode(key).decode("ascii").rstrip("=")


def parse_unlock_key(text: str) -> bytes:
    """Read an unlock key's text; blanks around it (from copying) are ignored.

    Raises:
        UnlockKeyError: the text is no unlock key; the message never repeats it.
    """
    text = text.strip()
    if not text:
        raise UnlockKeyError("the unlock key is empty")
    if not text.startswith(PREFIX):
        raise UnlockKeyError(f"an unlock key starts with {PREFIX}, this one does not")
    body = text.removeprefix(PREFIX)
    if len(body) != _TEXT_LENGTH:
        raise UnlockKeyError(
            f"an unlock key has {_TEXT_LENGTH} characters after {PREFIX}, this one has {len(body)}"
        )
    try:
        key = base64.b64decode(body + "=", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnlockKeyError("the unlock key has characters that are not base64") from error
    if format_unlock_key(key) != text:  # the last character has two bits that must be zero
        raise UnlockKeyError("the last character of the unlock key cannot be right")
    return key
