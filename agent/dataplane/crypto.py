"""Keys, SPIs and associations of encrypted networks. Pure.

The managers give out three keys; sorted by lamport time, the middle one transmits and all three
receive: a key that is given out is known everywhere one period before anybody transmits with it.
All nodes derive the same associations from the same keys, so nothing is negotiated.

Per tunnel address of a peer there is one association out and, for each key, one in per form of
the SPI: engines 29.0.0 to 29.2.0 derive it from 4-byte IPv4 addresses, all others from 16-byte
ones.

Source:
    Behaviour of Docker's overlay driver; RFC 4106 for key and salt; FNV-1a (RFC 9923) for the SPI.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from agent.dataplane.model import MAX_KEYS, IPAddress, IpsecKey
from agent.dataplane.objects import Association, Policy
from swarm.errors import InvalidArgumentError

GRACE = 60.0
"""Seconds for which packets under a key that was withdrawn are still taken: slow peers use it."""

MAX_RETIRED = 3
"""Withdrawn keys still listened to at one time; more rotations within GRACE drop the oldest."""

SEQUENCE_WARNING = 3 << 30
"""Packets under one key (three quarters of 2^32) from which on a node complains: at the end of
the sequence numbers the kernel stops sending until the next key (no extended numbers here)."""

_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193
_MAPPED = bytes(10) + b"\xff\xff"


@functools.lru_cache(maxsize=1 << 16)
def spi(source: IPAddress, destination: IPAddress, tag: int, *, short: bool = False) -> int:
    """Return the SPI of the packets from ``source`` to ``destination`` under the key ``tag``.

    Args:
        source: tunnel address of the sender.
        destination: of the receiver.
        tag: low 32 bits of the key's lamport time.
        short: hash IPv4 addresses in 4 bytes instead of 16.

    Returns:
        FNV-1a, 32 bits, over source, tag (big-endian) and destination.
    """
    data = _packed(source, short=short) + struct.pack("!I", tag) + _packed(destination, short=short)
    value = _FNV_OFFSET
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def _packed(ip: IPAddress, *, short: bool) -> bytes:
    return ip.packed if short or ip.version == 6 else _MAPPED + ip.packed


def material(key: bytes, number: int) -> bytes:
    """Return what the cipher is keyed with: 16 bytes of key, then the SPI as 4 bytes of salt."""
    return key + struct.pack("!I", number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The keys of a node at one time.

    Attributes:
        live: at most three, ascending by lamport time.
        retired: withdrawn ones, each with the monotonic second until which it is listened to.
        former: those that transmitted before, each with the second until which its association
            out stays: a packet that has chosen it may still be on its way to the cipher.
    """

    live: tuple[IpsecKey, ...] = ()
    retired: tuple[tuple[IpsecKey, float], ...] = ()
    former: tuple[tuple[IpsecKey, float], ...] = ()

    @property
    def sending(self) -> IpsecKey | None:
        """The second oldest; the only one while there is one; None without any."""
        if not self.live:
            return None
        return self.live[min(1, len(self.live) - 1)]

    @property
    def receiving(self) -> tuple[IpsecKey, ...]:
        """All that are listened to, the live ones first."""
        return self.live + tuple(key for key, _ in self.retired)

    def rotated(self, keys: Iterable[IpsecKey], now: float) -> Keyring:
        """Return the ring with ``keys`` live; those that were and are not, retire.

        Raises:
            InvalidArgumentError: too many, or two with one tag.
        """
        live = tuple(sorted(keys, key=lambda key: key.lamport))
        tags = {key.tag for key in live}
        if len(live) > MAX_KEYS:
            raise InvalidArgumentError(f"{len(live)} IPsec keys; at most {MAX_KEYS} live together")
        if len(tags) < len(live):
            raise InvalidArgumentError("two IPsec keys have one lamport time")
        retired = [(key, now + GRACE) for key in self.live if key.tag not in tags]
        retired += [pair for pair in self.retired if pair[0].tag not in tags and pair[1] > now]
        ring = Keyring(live=live, retired=tuple(retired[:MAX_RETIRED]))
        sending = None if ring.sending is None else ring.sending.tag
        former = [(key, now + GRACE) for key in (self.sending,) if key is not None]
        former += [pair for pair in self.former if pair[1] > now]
        kept = {key.tag: (key, until) for key, until in reversed(former) if key.tag != sending}
        return replace(ring, former=tuple(kept.values())[-MAX_RETIRED:])

    def after(self, now: float) -> Keyring:
        """Return the ring without keys whose time has passed."""
        return replace(
            self,
            retired=tuple(pair for pair in self.retired if pair[1] > now),
            former=tuple(pair for pair in self.former if pair[1] > now),
        )


def associations(local: IPAddress, remote: IPAddress, ring: Keyring) -> Iterator[Association]:
    """Yield what a node at ``local`` needs to talk with one at ``remote``."""
    for key in ring.receiving:
        numbers = {spi(remote, local, key.tag), spi(remote, local, key.tag, short=True)}
        for number in sorted(numbers):
            yield Association(
                source=remote,
                destination=local,
                spi=number,
                material=material(key.key, number),
                sends=False,
            )
    senders = [] if ring.sending is None else [ring.sending]
    for key in senders + [key for key, _ in ring.former]:
        number = spi(local, remote, key.tag)
        yield Association(
            source=local,
            destination=remote,
            spi=number,
            material=material(key.key, number),
            sends=True,
        )


def allow(local: IPAddress, remote: IPAddress, port: int, ring: Keyring) -> Iterator[Policy]:
    """Yield the policy that sends encrypted networks' packets to ``remote`` through its SA."""
    if ring.sending is not None:
        number = spi(local, remote, ring.sending.tag)
        yield Policy(local=local, remote=remote, port=port, version=local.version, spi=number)


def block(port: int, version: int) -> Policy:
    """Return the policy that stops encrypted networks' packets that nothing else allows."""
    return Policy(local=None, remote=None, port=port, version=version, spi=None)
