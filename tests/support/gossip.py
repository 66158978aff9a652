"""A simulated network of gossip cores: virtual time, seeded loss, reordering, cuts and restarts."""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.gossip.changes import ChangeKind, TableChange
from agent.gossip.config import LAN, GossipConfig, Timing
from agent.gossip.networkdb.wire import NetworkEvent, PushPullState, encode
from agent.gossip.node import Node
from agent.gossip.outputs import Datagram, Dial, Trace
from agent.gossip.swim import seal, wire
from agent.gossip.swim.keyring import GossipKey
from agent.gossip.swim.wire import State
from swarm.errors import WireError

PORT = 7946
TABLE = "endpoint_table"
LATE = 3.0  # seconds by which a datagram in disorder is late at most


def key_set(generation: int) -> list[GossipKey]:
    """Return the three keys alive after so many rotations."""
    return [
        GossipKey(lamport=100 + tag, key=random.Random(f"key {tag}").randbytes(16))
        for tag in range(generation, generation + 3)
    ]


@dataclass
class Host:
    """One simulated machine and the process on it."""

    address: str
    node: Node
    rng: random.Random
    up: bool = True
    paused: bool = False
    clock: float = 0.0  # added to the simulation's time
    scheduled: float = float("inf")
    held: list[tuple[bytes, str]] = field(default_factory=list)
    replica: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    model: dict[str, dict[str, bytes]] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)


@dataclass
class Traffic:
    """What all hosts together have sent."""

    datagrams: int = 0
    datagram_bytes: int = 0
    streams: int = 0
    stream_bytes: int = 0

    @property
    def messages(self) -> int:
        """Datagrams and requests over streams."""
        return self.datagrams + self.streams

    @property
    def bytes(self) -> int:
        """Bytes of both."""
        return self.datagram_bytes + self.stream_bytes

    def since(self, before: Traffic) -> Traffic:
        """Return what was sent after ``before`` was copied."""
        return Traffic(
            datagrams=self.datagrams - before.datagrams,
            datagram_bytes=self.datagram_bytes - before.datagram_bytes,
            streams=self.streams - before.streams,
            stream_bytes=self.stream_bytes - before.stream_bytes,
        )


class Simulation:
    """Hosts, the network between them, and the virtual clock."""

    def __init__(
        self, seed: int, *, timing: Timing = LAN, loss: float = 0.0, disorder: float = 0.0
    ) -> None:
        print(f"seed {seed}", file=sys.stderr)  # noqa: T201  # shown when a test fails
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.loss = loss
        self.disorder = (
            disorder  # share of datagrams that come seconds late, and of those that come twice
        )
        self.timing = timing
        self.hosts: dict[str, Host] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.traffic = Traffic()
        self.largest = 0
        self.on_change: Callable[[Host, TableChange], None] = lambda _, __: None
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    # -- hosts -----------------------------------------------------------------------------

    def start(
        self,
        address: str,
        *,
        seeds: Iterable[str] = (),
        name: str | None = None,
        incarnation: int = 1,
        generation: int = 0,
        timing: Timing | None = None,
    ) -> Host:
        """Start a process at an address; the one that was there is gone."""
        host = self._host(
            address, seeds, name=name, incarnation=incarnation, generation=generation, timing=timing
        )
        host.node.start(self.now)
        self._after_event(host)
        return host

    def _host(
        self,
        address: str,
        seeds: Iterable[str],
        *,
        name: str | None,
        incarnation: int,
        generation: int = 0,
        timing: Timing | None = None,
    ) -> Host:
        rng = random.Random(self.rng.getrandbits(64))
        node = Node(
            GossipConfig(
                advertise_host=address,
                node_name=name,
                incarnation=incarnation,
                timing=timing or self.timing,
            ),
            keys=key_set(generation),
            rng=rng,
            nonces=lambda: rng.randbytes(seal.NONCE_SIZE),
            now=self.now,
        )
        host = Host(address=address, node=node, rng=rng)
        self.hosts[address] = host
        node.set_seeds([(seed, PORT) for seed in seeds])
        return host

    def form(self, size: int, network: str) -> list[Host]:
        """Start hosts that know each other and are on one network already, at peace.

        Joining a thousand one by one takes minutes of processor time and is not what is measured.
        """
        hosts = []
        for index in range(size):
            host = self._host(f"10.0.{index >> 8}.{index & 255}", (), name=None, incarnation=1)
            hosts.append(host)
        state = wire.PushPull(
            join=False,
            nodes=tuple(host.node.swim.me.to_wire() for host in hosts),
            user_state=encode(
                PushPullState(
                    time=1,
                    node=hosts[0].node.name,
                    attachments=tuple(
                        NetworkEvent(joining=True, time=1, node=host.node.name, network=network)
                        for host in hosts
                    ),
                )
            ),
        )
        for host in hosts:
            host.model[network] = {}
            rules = host.node.swim.rules
            announce, rules.announce = rules.announce, lambda _: None
            host.node.swim._merge(state)
            rules.announce = announce
            host.node.db.state.own.clear()  # what it made of hearing of itself
            host.node.db.exchange._met.clear()
            host.node.db.publisher.join_network(network)
            own = host.node.db.state.own[network]
            own.in_sync, own.time = True, 1
            for queue in (host.node.swim.queue, host.node.db.publisher.queue):
                while queue.take(room=1 << 20, overhead=0, limit=1):
                    pass
            host.node.take_outputs()
            host.node.start(self.now)
            host.node.swim.queue.discard(host.node.name)
            self._after_event(host)
        return hosts

    def kill(self, host: Host) -> None:
        """End a process without a word."""
        host.up = False

    def resume(self, host: Host) -> None:
        """Let a stopped process run again; what its sockets held is delivered now."""
        host.paused = False
        held, host.held = host.held, []
        for data, source in held:
            host.node.receive_datagram(data, source, PORT, self.now + host.clock)
        self._tick(host)

    def leave(self, host: Host) -> None:
        """Let a process leave gracefully, then end."""
        host.node.db.announce_leave()
        self._after_event(host)
        self.run(5.0, until=lambda: host.node.db.leave_spread)
        host.node.swim.leave()
        self._after_event(host)
        self.run(1.0, until=lambda: host.node.swim.leave_spread)
        self.run(1.0)
        host.up = False

    # -- what a test does on a host ------------------------------------------------------------

    def join(self, host: Host, network: str) -> None:
        """Join a network."""
        host.model.setdefault(network, {})
        host.node.db.join_network(network)
        self._after_event(host)

    def quit(self, host: Host, network: str) -> None:
        """Leave a network."""
        host.model.pop(network, None)
        host.node.db.leave_network(network)
        self._after_event(host)

    def put(self, host: Host, network: str, key: str, value: bytes) -> None:
        """Publish an entry."""
        host.model[network][key] = value
        host.node.db.put(TABLE, network, key, value)
        self._after_event(host)

    def delete(self, host: Host, network: str, key: str) -> None:
        """Withdraw an entry."""
        host.model[network].pop(key, None)
        host.node.db.delete(TABLE, network, key)
        self._after_event(host)

    # -- network faults ------------------------------------------------------------------------

    def cut(self, sources: Iterable[Host], targets: Iterable[Host]) -> None:
        """Drop everything from one side to the other; call twice for both ways."""
        targets = list(targets)
        self.cuts |= {(a.address, b.address) for a in sources for b in targets}

    def partition(self, one: Iterable[Host], other: Iterable[Host]) -> None:
        """Cut both ways."""
        one, other = list(one), list(other)
        self.cut(one, other)
        self.cut(other, one)

    def heal(self) -> None:
        """Undo all cuts."""
        self.cuts.clear()

    # -- time ------------------------------------------------------------------------------

    def run(self, seconds: float, *, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether ``until`` came true (checked ten times a second)."""
        end = self.now + seconds
        while self.now < end:
            if until is not None and until():
                return True
            stop = min(end, self.now + 0.1) if until is not None else end
            while self._queue and self._queue[0][0] <= stop:
                self.now, _, action = heapq.heappop(self._queue)
                action()
            self.now = stop
        return until is not None and until()

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (when, self._serial, action))

    def _tick(self, host: Host) -> None:
        if host.up and not host.paused and self.hosts[host.address] is host:
            host.node.tick(self.now + host.clock)
            self._after_event(host)

    def _after_event(self, host: Host) -> None:
        while host.node.work(self.now + host.clock):
            pass
        for change in host.node.take_changes():
            self.on_change(host, change)
            place = (change.network, change.table, change.key)
            if change.kind is ChangeKind.DELETE:
                assert host.replica.pop(place) == change.value
            else:
                assert (place in host.replica) == (change.kind is ChangeKind.UPDATE)
                assert host.replica.get(place) == change.previous
                host.replica[place] = change.value
        for output in host.node.take_outputs():
            match output:
                case Datagram():
                    self._datagram(host, output)
                case Dial():
                    self._dial(host, output)
                case Trace():
                    host.traces.append(output)
        deadline = host.node.next_deadline()
        if deadline is not None:
            when = max(self.now, deadline - host.clock)
            if when < host.scheduled or host.scheduled <= self.now:
                host.scheduled = when
                self._at(when, lambda: self._wake(host, when))

    def _wake(self, host: Host, when: float) -> None:
        if host.scheduled == when:
            host.scheduled = float("inf")
            self._tick(host)

    def _latency(self) -> float:
        return 0.0002 + self.rng.expovariate(1000.0)

    def _stream_lag(self) -> float:
        """Return how long lost packets hold a stream up: its opening by a second and more, data by 0.2 s."""
        lost, lag, pause = 1 - (1 - self.loss) ** 2, 0.0, 1.0
        while self.rng.random() < lost:
            lag, pause = lag + pause, pause * 2
        for _ in range(2):  # request and reply
            pause = 0.2
            while self.rng.random() < lost:
                lag, pause = lag + pause, pause * 2
        return lag

    def _reach(self, source: str, target: str) -> Host | None:
        host = self.hosts.get(target)
        return host if host and host.up and (source, target) not in self.cuts else None

    def _datagram(self, sender: Host, output: Datagram) -> None:
        self.traffic.datagrams += 1
        self.traffic.datagram_bytes += len(output.data)
        self.largest = max(self.largest, len(output.data))
        if self.rng.random() < self.loss:
            return
        late = 0.0
        if self.disorder and self.rng.random() < self.disorder:
            late = self.rng.random() * LATE

        def arrive() -> None:
            host = self._reach(sender.address, output.host)
            if host is None:
                return
            if host.paused:
                host.held.append((output.data, sender.address))
                return
            host.node.receive_datagram(output.data, sender.address, PORT, self.now + host.clock)
            self._after_event(host)

        self._at(self.now + self._latency() + late, arrive)
        if self.disorder and self.rng.random() < self.disorder:
            self._at(self.now + self._latency() + self.rng.random() * LATE, arrive)

    def _dial(self, dialler: Host, dial: Dial) -> None:
        self.traffic.streams += 1
        self.traffic.stream_bytes += len(dial.frame)

        def finish(action: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                if dialler.up and not dialler.paused:
                    action()
                    self._after_event(dialler)

            return run

        def fail(reason: str) -> None:
            dialler.node.stream_failed(dial.token, reason, self.now + dialler.clock)

        lag = self._stream_lag()
        if lag > dial.timeout:
            self._at(self.now + dial.timeout, finish(lambda: fail("timed out")))
            return

        def arrive() -> None:
            host = self._reach(dialler.address, dial.host)
            back = (dial.host, dialler.address) not in self.cuts
            if host is None or not back or host.paused:
                refused = host is None and (dialler.address, dial.host) not in self.cuts
                delay = 0.001 if refused else dial.timeout
                self._at(self.now + delay, finish(lambda: fail("unreachable")))
                return
            try:
                message = host.node.decode_stream(dial.frame[:5], dial.frame[5:])
            except WireError:
                self._at(self.now + 0.001, finish(lambda: fail("closed")))
                return
            reply = host.node.serve_stream(message, dial.frame, self.now + host.clock)
            self.traffic.stream_bytes += len(reply or b"")
            self._after_event(host)

            def done() -> None:
                if not dial.reply:
                    dialler.node.stream_sent(dial.token, self.now + dialler.clock)
                elif reply is None:
                    fail("closed")
                else:
                    self._deliver_reply(dialler, dial, reply)

            self._at(self.now + self._latency(), finish(done))

        self._at(self.now + lag + self._latency() * 2, arrive)

    def _deliver_reply(self, dialler: Host, dial: Dial, reply: bytes) -> None:
        try:
            message = dialler.node.decode_stream(reply[:5], reply[5:])
        except WireError as error:
            dialler.node.stream_failed(dial.token, str(error), self.now + dialler.clock)
        else:
            dialler.node.stream_reply(dial.token, message, reply, self.now + dialler.clock)

    # -- what must hold --------------------------------------------------------------------

    def living(self) -> list[Host]:
        """Return the hosts whose process runs."""
        return [host for host in self.hosts.values() if host.up]

    def wanted(self, network: str) -> dict[str, bytes]:
        """Return what everybody on a network should see."""
        found: dict[str, bytes] = {}
        for host in self.living():
            found |= host.model.get(network, {})
        return found

    def seen(self, host: Host, network: str) -> dict[str, bytes]:
        """Return what a host shows its readers."""
        return {k: e.value for k, e in host.node.entries(TABLE, network).items()}

    def complaints(self) -> list[str]:
        """Return in which ways the cluster is not in the one right state."""
        found = []
        names = {host.node.name for host in self.living()}
        for host in self.living():
            alive = {m.name for m in host.node.swim.members if m.state is State.ALIVE}
            if alive != names:
                found.append(f"{host.address} sees {sorted(alive)} alive, not {sorted(names)}")
            for network in host.model:
                seen, wanted = self.seen(host, network), self.wanted(network)
                if seen != wanted:
                    missing, surplus = wanted.keys() - seen.keys(), seen.keys() - wanted.keys()
                    found.append(f"{host.address} {network}: lacks {missing}, holds {surplus}")
            replica = {
                (network, TABLE, key): value
                for network in host.node.db.state.own
                for key, value in self.seen(host, network).items()
            }
            if replica != host.replica:
                found.append(f"{host.address}: changes told do not add up to what is stored")
        return found

    def settle(self, seconds: float) -> None:
        """Let the cluster come to rest; fail with what is wrong if it does not."""
        self.run(seconds, until=lambda: not self.complaints())
        assert not self.complaints()
