"""Ids: form, the scheme's arithmetic, and base 36 against a slow oracle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.identity.ids import DIGITS, ID_LENGTH, base36, is_id, new_id


@given(st.binary(min_size=17, max_size=17))
def test_any_entropy_gives_an_id(raw: bytes) -> None:
    """Whatever 17 bytes come in, 25 digits of base 36 come out."""
    made = new_id(lambda _: raw)
    assert is_id(made)


@given(st.binary(min_size=17, max_size=17))
def test_id_is_the_number_less_its_first_digit(raw: bytes) -> None:
    """The id is digits 2 to 26 of the number whose top bit is set."""
    number = int.from_bytes(raw, "big") | 1 << 135
    assert new_id(lambda _: raw) == base36(number)[1:26]
    assert len(base36(number)) == 27


def test_zero_entropy_vector() -> None:
    """All-zero entropy is 2**135: written out by hand."""
    assert int("1" + "0" * 135, 2) == int("1" + new_id(bytes) + base36(2**135)[-1], 36)


@given(st.integers(min_value=0, max_value=2**300))
def test_base36_is_the_inverse_of_int(number: int) -> None:
    """Python's own reader of base 36 gets the number back."""
    assert int(base36(number), 36) == number


def test_base36_pads() -> None:
    """Short numbers are padded on the left; zero is one digit."""
    assert base36(35, 3) == "00z"
    assert base36(0) == "0"


def test_ids_differ() -> None:
    """The default entropy is random."""
    assert len({new_id() for _ in range(100)}) == 100


def test_is_id_refuses_other_texts() -> None:
    """Length and alphabet both count."""
    good = "a" * ID_LENGTH
    assert is_id(good)
    assert not is_id(good + "a")
    assert not is_id(good[:-1] + "A")
    assert not is_id(good[:-1] + "é")
    assert not is_id("")
    assert len(DIGITS) == 36
