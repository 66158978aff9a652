"""Encryption, frames, labels and the keyring."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gossip.swim import seal, wrappers
from agent.gossip.swim.keyring import GossipKey, Keyring
from swarm.errors import InvalidArgumentError, WireError

NONCE = bytes(range(12))
ACK = bytes.fromhex("0282a75061796c6f6164c0a55365714e6fccc8")


def ring(*tags: int) -> Keyring:
    """Return a key ring with one key per tag."""
    return Keyring(GossipKey(lamport=tag, key=bytes((tag,)) * 16) for tag in tags)


def test_datagram_vector(keyring: Keyring) -> None:
    """An ack sealed under the reference key and nonce is the reference bytes."""
    sealed = seal.seal_datagram(ACK, keyring, NONCE)
    assert sealed.hex() == (
        "01000102030405060708090a0b91ee009e07629b3b2ab6a12f65c60146dcead2edce9885e987a21336b14fc1bb6ef7a8"
    )
    assert seal.open_datagram_untrusted(sealed, keyring) == ACK


def test_frame_vector(keyring: Keyring) -> None:
    """The five header bytes of a frame are authenticated with it."""
    frame = seal.seal_frame(ACK, keyring, NONCE)
    assert frame.hex() == (
        "0a0000003001000102030405060708090a0b91ee009e07629b3b2ab6a12f65c60146dcead243b14de1b27565595227e378ca53d897"
    )
    assert seal.frame_size_untrusted(frame[:5]) == len(frame) - 5
    assert seal.open_frame_untrusted(frame[:5], frame[5:], keyring) == ACK
    with pytest.raises(WireError):
        seal.open_frame_untrusted(b"\x0a\x00\x00\x00\x31", frame[5:], keyring)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 32])
def test_version_zero_pads(keyring: Keyring, size: int) -> None:
    """The old version's padding comes off again, at every remainder."""
    sealed = seal._seal(b"x" * size, keyring, NONCE, b"", version=0)
    assert len(sealed) == 1 + 12 + (size // 16 + 1) * 16 + 16
    assert seal.open_datagram_untrusted(sealed, keyring) == b"x" * size


@pytest.mark.parametrize("tail", [b"", b"\x00", b"\x11" * 17, b"\x02", b"\x01\x02"])
def test_wrong_padding_is_refused(keyring: Keyring, tail: bytes) -> None:
    """Padding that says the wrong length is no padding."""
    sealed = b"\x00" + NONCE + keyring.sending.encrypt(NONCE, tail, None)
    with pytest.raises(WireError):
        seal.open_datagram_untrusted(sealed, keyring)


def test_label_is_demanded_checked_and_authenticated(keyring: Keyring) -> None:
    """Only the own label opens, and moving a datagram under another label breaks it."""
    sealed = seal.seal_datagram(ACK, keyring, NONCE, label=b"blue")
    assert sealed.startswith(b"\xf4\x04blue")
    assert seal.open_datagram_untrusted(sealed, keyring, label=b"blue") == ACK
    for data, label in (
        (sealed, b""),
        (sealed, b"red"),
        (sealed[6:], b"blue"),
        (sealed[6:], b""),
        (b"\xf4\x03red" + sealed[6:], b"red"),
        (b"\xf4", b""),
        (b"\xf4\x00" + sealed[6:], b""),
        (sealed[:4], b"blue"),
    ):
        with pytest.raises(WireError):
            seal.open_datagram_untrusted(data, keyring, label=label)


def test_replies_carry_no_label_header_but_authenticate_it(keyring: Keyring) -> None:
    """Only the dialling side writes the label."""
    frame = seal.seal_frame(ACK, keyring, NONCE, label=b"blue", dialling=False)
    assert frame[0] == seal.ENCRYPTED
    assert seal.open_frame_untrusted(frame[:5], frame[5:], keyring, label=b"blue") == ACK


@pytest.mark.parametrize(
    "header",
    [b"", b"\x0a\x00", b"\x06\x00\x00\x00\x40", b"\x0a\x00\x00\x00\x1c", b"\x0a\x01\x40\x00\x01"],
)
def test_frame_headers_outside_the_limits_are_refused(header: bytes) -> None:
    """Plain text, too short to be sealed, and one byte above 20 MiB."""
    with pytest.raises(WireError):
        seal.frame_size_untrusted(header)
    assert seal.frame_size_untrusted(b"\x0a\x01\x40\x00\x00") == 20 << 20


@given(st.binary(max_size=200))
def test_any_bytes_open_or_are_refused(data: bytes) -> None:
    """Nothing but WireError leaves the parser."""
    with pytest.raises(WireError):
        seal.open_datagram_untrusted(data, ring(1, 2, 3))


def test_every_flipped_byte_is_noticed(keyring: Keyring) -> None:
    """No single byte of a sealed datagram can change unnoticed."""
    sealed = seal.seal_datagram(ACK, keyring, NONCE)
    for index in range(len(sealed)):
        broken = bytearray(sealed)
        broken[index] ^= 0x01
        with pytest.raises(WireError):
            seal.open_datagram_untrusted(bytes(broken), keyring)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_the_middle_key_sends_in_whatever_order_the_set_comes(order: tuple[int, ...]) -> None:
    """A set is ordered by Lamport time, not by arrival."""
    sealed = seal.seal_datagram(ACK, ring(*order), NONCE)
    assert sealed == seal.seal_datagram(ACK, ring(2, 1, 3), NONCE)
    assert seal.open_datagram_untrusted(sealed, ring(8, 9, 2)) == ACK


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [(1, 16), (2, 16)],
        [(1, 16), (2, 16), (3, 16), (4, 16)],
        [(1, 16), (2, 15), (3, 16)],
        [(1, 16), (1, 24), (3, 16)],
        [(1, 16), (2, 0), (3, 16)],
    ],
)
def test_any_other_set_is_refused_whole(keys: list[tuple[int, int]]) -> None:
    """Exactly three keys, distinct, of legal sizes; a refused change changes nothing."""
    wrong = [GossipKey(lamport=tag, key=bytes((tag,)) * size) for tag, size in keys]
    with pytest.raises(InvalidArgumentError):
        Keyring(wrong)
    held = ring(1, 2, 3)
    before = held.fingerprints()
    with pytest.raises(InvalidArgumentError):
        held.replace(wrong)
    assert held.fingerprints() == before


def test_the_same_key_twice_is_refused() -> None:
    """Three tags with two keys are not three keys."""
    with pytest.raises(InvalidArgumentError):
        Keyring(GossipKey(lamport=tag, key=bytes((tag // 2,)) * 16) for tag in (1, 2, 3))


def test_unchanged_set_is_no_change() -> None:
    """Replacing a set by itself reports nothing."""
    held = ring(1, 2, 3)
    assert not held.replace([GossipKey(lamport=t, key=bytes((t,)) * 16) for t in (3, 1, 2)])


@pytest.mark.parametrize("missed", [1, 2, 5])
def test_missed_rotations_are_one_step(missed: int) -> None:
    """However many rotations lie between, the new set sends and the old one still opens."""
    held, up_to_date = ring(1, 2, 3), ring(1 + missed, 2 + missed, 3 + missed)
    old_traffic = seal.seal_datagram(ACK, held, NONCE)
    tags = (1 + missed, 2 + missed, 3 + missed)
    assert held.replace([GossipKey(lamport=t, key=bytes((t,)) * 16) for t in tags])
    sealed = seal.seal_datagram(ACK, held, NONCE)
    assert sealed == seal.seal_datagram(ACK, up_to_date, NONCE)
    assert seal.open_datagram_untrusted(old_traffic, held) == ACK


def test_retired_keys_go_with_the_next_change() -> None:
    """A key is accepted for one more period after it vanished from the set, not for ever."""
    held = ring(1, 2, 3)
    first = seal.seal_datagram(ACK, ring(0, 1, 9), NONCE)
    held.replace([GossipKey(lamport=t, key=bytes((t,)) * 16) for t in (2, 3, 4)])
    assert seal.open_datagram_untrusted(first, held) == ACK
    held.replace([GossipKey(lamport=t, key=bytes((t,)) * 16) for t in (3, 4, 5)])
    with pytest.raises(WireError):
        seal.open_datagram_untrusted(first, held)


def test_fingerprints_do_not_reveal_keys() -> None:
    """A fingerprint is short, stable, and not part of the key."""
    key = GossipKey(lamport=1, key=b"A" * 16)
    assert len(key.fingerprint()) == 16
    assert key.fingerprint() not in key.key.hex()


def test_sealed_size_is_as_budgeted(keyring: Keyring) -> None:
    """The budget of datagrams counts on this overhead."""
    assert len(seal.seal_datagram(b"x", keyring, NONCE)) == 1 + seal.OVERHEAD
    assert len(wrappers.with_crc(b"x")) - 1 == wrappers.CRC_SIZE
