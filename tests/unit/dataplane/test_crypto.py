"""Keys, SPIs and the messages that carry them."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import crypto, xfrm
from agent.dataplane.crypto import GRACE, Keyring
from agent.dataplane.model import IpsecKey
from agent.dataplane.netlink import attrs
from agent.dataplane.objects import Association, Policy
from swarm.errors import InvalidArgumentError, WireError

ONE, TWO = ipaddress.ip_address("1.2.3.4"), ipaddress.ip_address("5.6.7.8")


@pytest.mark.parametrize(
    ("source", "destination", "tag", "forth", "back"),
    [
        ("192.168.14.145", "192.168.14.147", 13986, 0x755DEE5B, 0x1F279BA7),
        ("1.2.3.4", "5.6.7.8", 1234, 0x5DE62C5B, 0xFBE6142B),
        ("10.0.0.1", "2001:db8::1", 5678, 0x8C1EA943, None),
        ("2002:db8::42", "2002:db8::69", 9999, 0x342A609E, 0x1120B4C2),
    ],
)
def test_spis_are_those_of_docker(
    source: str, destination: str, tag: int, forth: int, back: int | None
) -> None:
    """Values that Docker's engines compute; the first pair was seen in the field."""
    one, two = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    assert crypto.spi(one, two, tag) == forth
    if back is not None:
        assert crypto.spi(two, one, tag) == back


def test_the_short_form_is_that_of_engines_29_0_to_29_2() -> None:
    """IPv4 in 4 bytes; IPv6 has one form only."""
    assert crypto.spi(ONE, TWO, 1234, short=True) == 0x19B3D63B
    six, seven = ipaddress.ip_address("2002:db8::42"), ipaddress.ip_address("2002:db8::69")
    assert crypto.spi(six, seven, 9999, short=True) == 0x342A609E


def test_the_salt_is_the_spi() -> None:
    """Big-endian behind the key."""
    assert crypto.material(b"k" * 16, 0x01020304) == b"k" * 16 + b"\1\2\3\4"


def test_three_keys_make_six_ways_in_and_one_out(make: Any) -> None:
    """The middle key transmits; each key is listened to in both SPI forms (IPv6 has one)."""
    ring = Keyring().rotated([make.key(n) for n in (7, 9, 8)], 0)
    items = list(crypto.associations(ONE, TWO, ring))
    ways_in = [item for item in items if not item.sends]
    assert {item.spi for item in ways_in} == {
        crypto.spi(TWO, ONE, tag, short=short) for tag in (7, 8, 9) for short in (False, True)
    }
    assert all((item.source, item.destination) == (TWO, ONE) for item in ways_in)
    (out,) = [item for item in items if item.sends]
    assert out.spi == crypto.spi(ONE, TWO, 8)
    assert out.material == make.key(8).key + struct.pack("!I", out.spi)
    (policy,) = crypto.allow(ONE, TWO, 4789, ring)
    assert policy.spi == out.spi
    six, seven = ipaddress.ip_address("2002:db8::42"), ipaddress.ip_address("2002:db8::69")
    assert len(list(crypto.associations(six, seven, ring))) == 4


@given(st.lists(st.integers(0, (1 << 34)), max_size=3, unique_by=lambda n: n & 0xFFFFFFFF))
def test_the_second_oldest_key_transmits(lamports: list[int]) -> None:
    """As in Docker: sort ascending, swap the first two, take the first."""
    ring = Keyring().rotated([IpsecKey(lamport=n, key=bytes(16)) for n in lamports], 0)
    order = sorted(lamports)
    if len(order) > 1:
        order[0], order[1] = order[1], order[0]
    assert (ring.sending.lamport if ring.sending else None) == (order[0] if order else None)


def test_a_withdrawn_key_is_listened_to_for_a_while(make: Any) -> None:
    """It never transmits, comes back live when it is given out again, and does not pile up."""
    ring = Keyring().rotated([make.key(n) for n in (1, 2, 3)], 10)
    ring = ring.rotated([make.key(n) for n in (2, 3, 4)], 20)
    assert [key.lamport for key in ring.receiving] == [2, 3, 4, 1]
    assert ring.sending == make.key(3)
    assert ring.after(20 + GRACE - 1) == ring
    assert ring.after(20 + GRACE).retired == ()
    assert [key.lamport for key, _ in ring.former] == [2]
    assert ring.after(20 + GRACE).former == ()
    back = ring.rotated([make.key(n) for n in (1, 2, 3)], 30)
    assert [key.lamport for key in back.receiving] == [1, 2, 3, 4]
    for number in range(5, 30):
        ring = ring.rotated([make.key(n) for n in (number, number + 1, number + 2)], 30)
        assert len(ring.receiving) <= 6
        assert ring.sending == make.key(number + 1)
        assert len(ring.former) <= 3


def test_keys_that_cannot_be_are_refused(make: Any) -> None:
    """Four, two of one tag, or not 16 bytes; and a key is never shown."""
    for numbers in ((1, 2, 3, 4), (5, 5)):
        with pytest.raises(InvalidArgumentError):
            Keyring().rotated([make.key(number) for number in numbers], 0)
    with pytest.raises(InvalidArgumentError):
        Keyring().rotated([make.key(1), IpsecKey(lamport=(1 << 32) + 1, key=bytes(16))], 0)
    with pytest.raises(InvalidArgumentError):
        IpsecKey(lamport=1, key=bytes(20))
    secret = IpsecKey(lamport=1, key=b"secret-of-16-bts")
    shown = repr(list(crypto.associations(ONE, TWO, Keyring(live=(secret,))))) + repr(secret)
    assert "secret-of" not in shown


# --- messages --------------------------------------------------------------------------------

SA = Association(
    source=ONE,
    destination=TWO,
    spi=0x5DE62C5B,
    material=bytes(range(16)) + bytes.fromhex("5de62c5b"),
    sends=True,
)
NEVER = "ff" * 32 + "00" * 32


def test_an_association_is_encoded_to_the_byte() -> None:
    """As ``ip xfrm state add ... mode transport aead 'rfc4106(gcm(aes))' 64`` sends it."""
    kind, flags, body = xfrm.new_association(SA)
    assert (kind, flags) == (0x10, 0x600)
    assert len(body) == 224 + 4 + 64 + 8 + 20
    assert body[:224].hex() == (
        "00" * 56  # selector: any
        + "05060708" + "00" * 12 + "5de62c5b" + "32000000"  # daddr, SPI, ESP
        + "01020304" + "00" * 12  # saddr
        + NEVER + "00" * 32 + "00" * 12  # lifetimes, stats
        + "00000000" + "e3c4d000" + "0200" + "00" + "00" + "00" + "00" * 7
    )  # fmt: skip
    assert body[224:].hex() == (
        "6000" + "1200"
        + b"rfc4106(gcm(aes))".hex() + "00" * 47 + "a0000000" + "40000000"
        + bytes(range(16)).hex() + "5de62c5b"
    )  # fmt: skip
    _, _, name = xfrm.delete_association(SA)
    assert name.hex() == "05060708" + "00" * 12 + "5de62c5b" + "0200" + "3200"


def test_a_policy_is_encoded_to_the_byte() -> None:
    """UDP from 0xf000/0xf000 to the data port; the block without, the allow with a template."""
    selector = "ffff" + "f000" + "f000" + "0200"
    kind, flags, body = xfrm.put_policy(crypto.block(4789, 4))
    assert (kind, flags, len(body)) == (0x19, 0, 168)
    assert body.hex() == (
        "00" * 32 + "12b5" + selector + "0000" + "11" + "00" * 3 + "00" * 8
        + NEVER + "00" * 32
        + "e8030000" + "00000000" + "01" + "01" + "0000" + "00" * 4
    )  # fmt: skip
    allow = Policy(local=ONE, remote=TWO, port=4790, version=4, spi=0x5DE62C5B)
    _, _, body = xfrm.put_policy(allow)
    assert body[:56].hex() == (
        "05060708" + "00" * 12 + "01020304" + "00" * 12
        + "12b6" + selector + "2020" + "11" + "00" * 3 + "00" * 8
    )  # fmt: skip
    assert body[152:168].hex() == "00000000" + "00000000" + "01" + "00" + "0000" + "00" * 4
    assert body[168:].hex() == (
        "4400" + "0500"
        + "05060708" + "00" * 12 + "5de62c5b" + "32000000" + "0200" + "0000"
        + "01020304" + "00" * 12 + "e3c4d000" + "00" * 4 + "ff" * 12
    )  # fmt: skip
    _, _, name = xfrm.delete_policy(allow)
    assert name == body[:56] + bytes(4) + b"\1\0\0\0"


V6 = (ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::2"))


@pytest.mark.parametrize(("local", "remote"), [(ONE, TWO), V6])
def test_what_is_encoded_is_understood(local: Any, remote: Any) -> None:
    """Policies and associations, both families; the kernel's dump has the request's shape."""
    version = local.version
    for policy in (
        crypto.block(4789, version),
        Policy(local=local, remote=remote, port=4789, version=version, spi=77),
    ):
        assert xfrm.parse_policy(xfrm.put_policy(policy).body) == policy
    item = Association(source=local, destination=remote, spi=7, material=b"m" * 20, sends=True)
    body = xfrm.new_association(item).body
    read = xfrm.parse_association(body, local)
    assert read == item
    assert read is not None
    assert read.sends
    replay = struct.pack("=HHIII", 16, 10, 123, 0, 0)
    sent = xfrm.parse_association(body + replay, remote)
    assert sent is not None
    assert (sent.sent, sent.sends) == (123, False)


def test_what_is_anothers_is_not_ours() -> None:
    """By reqid, protocol or mark; what only looks like ours differs from everything wanted."""
    body = bytearray(xfrm.new_association(SA).body)
    for position, value in ((208, 0), (76, 51)):  # reqid, protocol
        foreign = bytearray(body)
        foreign[position] = value
        assert xfrm.parse_association(bytes(foreign), ONE) is None
    for position in (214, 215, 228):  # mode, window, cipher
        wrong = bytearray(body)
        wrong[position] ^= 1
        read = xfrm.parse_association(bytes(wrong), ONE)
        assert read is not None
        assert not SA.held_by(read)
    hidden = xfrm.parse_association(bytes(body[:-20]) + bytes(20), ONE)
    assert hidden is not None
    assert SA.held_by(hidden), "a locked-down kernel shows no keys"
    policy = bytearray(
        xfrm.put_policy(Policy(local=ONE, remote=TWO, port=1, version=4, spi=9)).body
    )
    for position in (36, 38, 44, 160):  # source port, its mask, protocol, direction
        foreign = bytearray(policy)
        foreign[position] ^= 2
        assert xfrm.parse_policy(bytes(foreign)) is None
    mark = struct.pack("=HHII", 12, 21, 0xD0C4E3, 0xFFFFFFFF)
    assert xfrm.parse_policy(bytes(policy) + mark) is None, "Docker's own"
    for position in (152, 161, 200 + 4, 172):  # priority, action, template's reqid and address
        wrong = bytearray(policy)
        wrong[position] ^= 1
        read_policy = xfrm.parse_policy(bytes(wrong))
        assert read_policy is None or read_policy.spi in {0, None}


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """A dump that cannot be is a WireError and nothing else."""
    for parse in (xfrm.parse_policy, lambda body: xfrm.parse_association(body, ONE)):
        with contextlib.suppress(WireError):
            parse(data)
    with contextlib.suppress(WireError):
        attrs(data)
