"""The unlock key's text form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.identity.unlock import (
    UnlockKeyError,
    format_unlock_key,
    new_unlock_key,
    parse_unlock_key,
)

TEXT = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def test_vector() -> None:
    """Bytes 0 to 31, in base64 without padding."""
    assert format_unlock_key(bytes(range(32))) == TEXT
    assert parse_unlock_key(f" {TEXT}\n") == bytes(range(32))


@given(st.binary(min_size=32, max_size=32))
def test_round_trip(key: bytes) -> None:
    """Every key survives its text form."""
    assert parse_unlock_key(format_unlock_key(key)) == key


def test_new_keys_have_32_random_bytes() -> None:
    """Two keys differ."""
    assert len(new_unlock_key()) == 32
    assert new_unlock_key() != new_unlock_key()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (TEXT.removeprefix("SWMKEY-1-"), "starts with SWMKEY-1-"),
        (TEXT.replace("-1-", "-2-"), "starts with SWMKEY-1-"),
        (TEXT[:-1], "has 42"),
        (TEXT + "=", "has 44"),
        (TEXT[:-2] + "-8", "not base64"),
        (TEXT[:-1] + "é", "not base64"),
        (TEXT[:-1] + "9", "last character"),
    ],
)
def test_a_bad_key_is_named(text: str, says: str) -> None:
    """The sentence says what is wrong, without the key in it."""
    with pytest.raises(UnlockKeyError, match=says) as caught:
        parse_unlock_key(text)
    assert TEXT[20:40] not in str(caught.value)


def test_a_short_key_is_refused() -> None:
    """Only 32 bytes can be written."""
    with pytest.raises(UnlockKeyError, match="has 31"):
        format_unlock_key(bytes(31))
