"""One node's gossip without sockets: membership and tables joined, seeds kept in reach.

Every call that something happened carries the time; afterwards the caller takes the outputs and
changes and sleeps until the next deadline::

    node.start(now)
    node.receive_datagram(data, host, port, now)
    while node.work(now): ...
    node.tick(now)
    for output in node.take_outputs(): ...
    for change in node.take_changes(): ...
    sleep until node.next_deadline()
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable
from typing import Final

from agent.gossip.changes import Entry, TableChange
from agent.gossip.config import GossipConfig
from agent.gossip.networkdb.core import NetworkDB
from agent.gossip.outputs import Output
from agent.gossip.records import is_draining
from agent.gossip.swim import wire
from agent.gossip.swim.core import Swim, datagram_room
from agent.gossip.swim.keyring import GossipKey, Keyring
from agent.gossip.timers import Timer, Timers
from swarm.errors import InvalidArgumentError

WORK_MESSAGES: Final = 64  # one slice of work takes a few milliseconds at most
LONELY_RETRY: Final = 1.0
"""Seconds until a missing seed is tried again; doubles up to the ordinary interval, or to LONELY_LIMIT
while nobody at all is reached."""
LONELY_LIMIT: Final = 10.0


class Node:
    """The core a shell or a simulation drives."""

    def __init__(
        self,
        config: GossipConfig,
        *,
        keys: Iterable[GossipKey],
        rng: random.Random,
        nonces: Callable[[], bytes],
        now: float,
    ) -> None:
        host = str(_address(config.advertise_host))
        self.config = config
        self.name = config.node_name or random_name(rng)
        self.address = (host, config.advertise_port)
        self.keyring = Keyring(keys)
        self.timers = Timers(now)
        self._rng = rng
        self._seeds: tuple[tuple[str, int], ...] = ()
        self._seed_timer: Timer | None = None
        self._lonely_pause = LONELY_RETRY
        self._started = False
        self.db = NetworkDB(
            name=self.name,
            host=host,
            port=config.advertise_port,
            timing=config.timing,
            timers=self.timers,
            rng=rng,
            transport=self,
            draining=is_draining,
            datagram_room=datagram_room(config.timing.packet_size, config.label),
        )
        self.swim = Swim(
            name=self.name,
            host=host,
            port=config.advertise_port,
            timing=config.timing,
            timers=self.timers,
            rng=rng,
            keyring=self.keyring,
            nonces=nonces,
            delegate=self.db,
            incarnation=config.incarnation,
            label=config.label,
        )

    # -- driving ---------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin to take part."""
        self.timers.begin(now)
        self._started = True
        self.swim.start()
        self.db.start()
        self._look_for_seeds()

    def receive_datagram(self, data: bytes, host: str, port: int, now: float) -> None:
        """Take one datagram; answers to probes are among the outputs at once."""
        self.timers.advance(now)
        self.swim.receive_datagram(data, host, port)

    def decode_stream(self, header: bytes, body: bytes) -> wire.StreamMessage:
        """Return the message of one stream frame; may run in another thread.

        Raises:
            WireError: no key opens it, or it is malformed.
        """
        return self.swim.decode_stream(header, body)

    def serve_stream(self, message: wire.StreamMessage, sealed: bytes, now: float) -> bytes | None:
        """Take a request from a stream; return the frame to answer with, if any.

        Args:
            message: what the frame held.
            sealed: the frame, or as much of its end as tells it from others.
            now: the time.
        """
        self.timers.advance(now)
        return self.swim.serve_stream(message, sealed)

    def stream_reply(
        self, token: int, message: wire.StreamMessage, sealed: bytes, now: float
    ) -> None:
        """Take the reply to a Dial; ``sealed`` as in :meth:`serve_stream`."""
        self.timers.advance(now)
        self.swim.stream_reply(token, message, sealed)

    def stream_sent(self, token: int, now: float) -> None:
        """Hear that a Dial without reply is done."""
        self.timers.advance(now)
        self.swim.stream_sent(token)

    def stream_failed(self, token: int, reason: str, now: float) -> None:
        """Hear that a Dial came to nothing."""
        self.timers.advance(now)
        self.swim.stream_failed(token, reason)

    def tick(self, now: float) -> None:
        """Run whatever is due."""
        self.timers.advance(now)
        if self._started:
            self.timers.run_due()

    def work(self, now: float) -> bool:
        """Work on a slice of what waits; return whether more does."""
        self.timers.advance(now)
        messages = self.swim.work(WORK_MESSAGES)
        events = self.db.work()
        return messages or events

    def next_deadline(self) -> float | None:
        """Return when :meth:`tick` is due, on the caller's clock."""
        return self.timers.next_deadline()

    def take_outputs(self) -> list[Output]:
        """Return what is to be done outside, and forget it."""
        return self.swim.take_outputs()

    def take_changes(self) -> list[TableChange]:
        """Return what became different for readers of the tables, and forget it."""
        return self.db.take_changes()

    # -- control ---------------------------------------------------------------------------

    def set_keys(self, keys: Iterable[GossipKey]) -> bool:
        """Install a whole key set; return False if it is the one installed.

        Raises:
            InvalidArgumentError: not a valid set; nothing changed.
        """
        return self.keyring.replace(keys)

    def set_seeds(self, seeds: Iterable[tuple[str, int]]) -> None:
        """Replace the addresses that should be members; those that are not are joined soon.

        Saying the same again is a hint that now is a good moment to look for those that are missing.

        Raises:
            InvalidArgumentError: a host is no IP address, or a port no port.
        """
        checked = {(str(_address(host)), _port(port)) for host, port in seeds}
        wanted = tuple(sorted(checked - {self.address}))
        if wanted == self._seeds and not self._missing_seeds():
            return
        self._seeds = wanted
        self._lonely_pause = LONELY_RETRY
        if self._started:
            self._look_for_seeds()

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """The addresses that should be members, this node's own left out."""
        return self._seeds

    def knows_host(self, host: str) -> bool:
        """Tell whether a member is or was lately at a host, or one of the seeds is."""
        return self.db.state.peers.at_host(host) or any(host == seed for seed, _ in self._seeds)

    def entries(self, table: str, network: str) -> dict[str, Entry]:
        """Return the visible entries of one table on one network, own ones included."""
        return {
            place.key: Entry(owner=entry.owner, value=entry.value)
            for place, entry in self.db.state.store.network(network).items()
            if place.table == table and entry.visible
        }

    # -- seeds -----------------------------------------------------------------------------

    def _look_for_seeds(self) -> None:
        """Join the seeds that are no living members; soon again at first, then ever less often."""
        if self._seed_timer is not None:
            self._seed_timer.cancel()
        missing = [] if self.swim.leaving else self._missing_seeds()
        alone = sum(not member.gone for member in self.swim.members) <= 1
        for host, port in missing:
            delay = 0.0 if alone else self._rng.random() * self.config.timing.rejoin_jitter
            self.timers.after(delay, self._joiner(host, port))
        pause = self.config.timing.rejoin_interval
        if missing or alone:
            limit = LONELY_LIMIT if alone else pause
            pause = min(pause, self._lonely_pause)
            self._lonely_pause = min(limit, self._lonely_pause * 2)
        else:
            self._lonely_pause = LONELY_RETRY
        self._seed_timer = self.timers.after(pause, self._look_for_seeds)

    def _missing_seeds(self) -> list[tuple[str, int]]:
        living = {(member.host, member.port) for member in self.swim.members if not member.gone}
        return [seed for seed in self._seeds if seed not in living]

    def _joiner(self, host: str, port: int) -> Callable[[], None]:
        return lambda: self.swim.join(host, port)

    # -- transport of the tables -----------------------------------------------------------

    def send_datagram(self, node: str, body: bytes) -> None:
        """Send one table message directly."""
        member = self.swim.members.get(node)
        if member is not None:
            self.swim.send_user_datagram(member, body)

    def send_stream(self, node: str, body: bytes, settle: Callable[[bool], None]) -> None:
        """Send one table message over a stream."""
        member = self.swim.members.get(node)
        if member is None:
            self.timers.after(0.0, lambda: settle(False))
        else:
            self.swim.send_user_stream(member, body, settle)

    def reconnect(self, host: str, port: int) -> None:
        """Try to meet a failed node again."""
        if not self.swim.leaving:
            self.swim.join(host, port)

    def alive(self, node: str) -> bool:
        """Tell whether membership holds a node to be alive."""
        member = self.swim.members.get(node)
        return member is not None and not member.gone


def random_name(rng: random.Random) -> str:
    """Return 12 random hexadecimal digits that are not all decimal, as engines demand."""
    while True:
        name = f"{rng.getrandbits(48):012x}"
        if not name.isdecimal():
            return name


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError as error:
        raise InvalidArgumentError(f"{host!r} is not an IP address") from error


def _port(port: int) -> int:
    if not 0 < port <= 0xFFFF:
        raise InvalidArgumentError(f"{port} is not a port")
    return port
