"""The coordinator with a real table of names, and fakes that keep the order of what they are told."""
# the names say what is expected

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent.api.convert import remote_endpoints
from agent.balancer import Balancer
from agent.balancer.hostports import HostPorts
from agent.balancer.mesh import Mesh
from agent.dataplane.dataplane import Dataplane
from agent.dataplane.model import (
    Endpoint,
    Failure,
    IPAddress,
    Network,
    Peer,
    Report,
    VxlanCounters,
    Wanted,
)
from agent.dataplane.names import vxlan_mac
from agent.dataplane.nft import Nft
from agent.discovery.names import NameTable
from agent.discovery.service import Discovery
from agent.gossip.changes import ChangeKind, TableChange
from agent.gossip.config import LAN
from agent.gossip.records import (
    ENDPOINT_TABLE,
    PEER_TABLE,
    EndpointRecord,
    PeerRecord,
    decode_endpoint_untrusted,
    decode_peer_untrusted,
)
from agent.gossip.service import Gossip, Member, State
from agent.node import leases as module
from agent.node.coordinator import Coordinator
from agent.node.request import AttachRequest
from agent.node.seams import (
    BalancerPort,
    DataplanePort,
    DiscoveryPort,
    GossipPort,
    SessionPort,
)
from agent.node.state import RunDirectory, ServicePart, Stage
from agent.session.service import Session
from swarm import model
from swarm.errors import (
    ConflictError,
    DeadlineError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
    UnavailableError,
)
from swarm.model import (
    Annotations,
    Driver,
    IPAMConfig,
    IPAMFamily,
    IPAMOptions,
    NetworkAttachment,
    NetworkAttachmentSpec,
    NetworkSpec,
    NodeAvailability,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

VTEP = ipaddress.ip_address("192.0.2.10")
CONTAINER = "c" * 64


def conforms(
    session: Session,
    gossip: Gossip,
    dataplane: Dataplane,
    discovery: Discovery,
    balancer: Balancer,
) -> tuple[SessionPort, GossipPort, DataplanePort, DiscoveryPort, BalancerPort]:
    """Checked by mypy alone: the real classes fit the seams that the fakes below stand in for."""
    return session, gossip, dataplane, discovery, balancer


def network(number: int = 1, **options: str) -> model.Network:
    return model.Network(
        id=f"net{number}" + "0" * 21,
        spec=NetworkSpec(annotations=Annotations(name=f"backend{number}"), attachable=True),
        driver_state=Driver(
            name="overlay",
            options={
                "com.docker.network.driver.overlay.vxlanid_list": str(4096 + number),
                **options,
            },
        ),
        ipam=IPAMOptions(
            driver=Driver(name="default"),
            configs=(
                IPAMConfig(
                    family=IPAMFamily.IPV4, subnet=f"10.0.{number}.0/24", gateway=f"10.0.{number}.1"
                ),
            ),
        ),
    )


Log = list[tuple[Any, ...]]


@dataclass
class FakeSession:
    log: Log
    networks: dict[str, model.Network] = field(default_factory=dict)
    last_error: str = ""
    known: dict[str, Task] = field(default_factory=dict)
    statuses: dict[str, TaskState] = field(default_factory=dict)
    errors: list[SwarmError] = field(default_factory=list)
    detach_errors: list[SwarmError] = field(default_factory=list)
    hold: bool = False
    held: list[Task] = field(default_factory=list)
    assigned: Callable[[Task], None] = lambda _: None
    up: asyncio.Event = field(default_factory=asyncio.Event)
    next_host: int = 2

    async def active(self) -> None:
        await self.up.wait()

    def task(self, task_id: str) -> Task | None:
        return self.known.get(task_id)

    def tasks(self) -> tuple[Task, ...]:
        return tuple(self.known.values())

    def report(self, task_id: str, status: TaskStatus) -> None:
        self.statuses[task_id] = status.state
        self.log.append(("report", task_id, status.state.name))

    def forget(self, task_id: str) -> None:
        self.statuses.pop(task_id, None)

    async def attach_network(
        self, target: str, container_id: str, addresses: tuple[str, ...] = ()
    ) -> str:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        found = [n for n in self.networks.values() if target in {n.id, n.spec.annotations.name}]
        if not found:
            raise NotFoundError(f"network {target} not found")
        prefix = found[0].ipam.configs[0].subnet.rsplit(".", 1)[0]  # type: ignore[union-attr]
        address = addresses[0] if addresses else f"{prefix}.{self.next_host}"
        task_id = f"task{self.next_host}"
        self.next_host += 1
        task = Task(
            id=task_id,
            node_id="n1",
            spec=TaskSpec(attachment=NetworkAttachmentSpec(container_id=container_id)),
            status=TaskStatus(state=TaskState.ASSIGNED),
            desired_state=TaskState.RUNNING,
            networks=(NetworkAttachment(network=found[0], addresses=(f"{address}/24",)),),
        )
        self.log.append(("ask", target, addresses))
        if self.hold:
            self.held.append(task)
        else:
            self.give(task)
        return task_id

    def give(self, task: Task) -> None:
        self.known[task.id] = task
        self.assigned(task)

    async def detach_network(self, attachment_id: str) -> None:
        if self.detach_errors:
            raise self.detach_errors.pop(0)
        self.log.append(("release", attachment_id))
        self.known.pop(attachment_id, None)


@dataclass
class FakeGossip:
    log: Log
    node_name: str = "self"
    states: dict[str, State] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)
    held: dict[tuple[str, str, str], bytes] = field(default_factory=dict)

    def members(self) -> tuple[Member, ...]:
        return tuple(
            Member(name=name, host="192.0.2.1", port=7946, state=state)
            for name, state in self.states.items()
        )

    def join_network(self, network: str) -> None:
        if network not in self.joined:
            self.log.append(("join", network))
        self.joined.add(network)

    def leave_network(self, network: str) -> None:
        self.joined.discard(network)
        self.log.append(("leave", network))

    def put(self, table: str, network: str, key: str, value: bytes) -> None:
        assert network in self.joined
        if self.held.get((table, network, key)) != value:
            self.held[table, network, key] = value
            self.log.append(("put", table))

    def delete(self, table: str, network: str, key: str) -> None:
        if self.held.pop((table, network, key), None) is not None:
            self.log.append(("delete", table))


@dataclass
class FakeDataplane:
    log: Log
    networks: dict[str, Network] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    peers: dict[tuple[str, IPAddress], Peer] = field(default_factory=dict)
    errors: dict[str, list[SwarmError]] = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    kernel: set[str] = field(default_factory=set)
    wanted: Wanted | None = None

    def _check(self, step: str) -> None:
        if self.errors.get(step):
            raise self.errors[step].pop(0)

    async def put_network(self, network: Network) -> None:
        await asyncio.sleep(0)
        self._check("put_network")
        self.networks[network.id] = network
        self.log.append(("put_network", network.id))

    async def remove_network(self, network_id: str) -> None:
        await asyncio.sleep(0)
        assert not [e for e in self.endpoints.values() if e.network_id == network_id]
        self.networks.pop(network_id, None)
        self.peers = {k: v for k, v in self.peers.items() if k[0] != network_id}
        self.log.append(("remove_network", network_id))

    async def plug(self, endpoint: Endpoint) -> None:
        await asyncio.sleep(0)
        self._check("plug")
        assert endpoint.network_id in self.networks
        self.endpoints[endpoint.id] = endpoint
        self.log.append(("plug", endpoint.ifname))

    async def unplug(self, endpoint_id: str) -> None:
        await asyncio.sleep(0)
        self.endpoints.pop(endpoint_id, None)
        self.log.append(("unplug",))

    async def set_peer(self, peer: Peer) -> None:
        self.peers[peer.network_id, peer.ip] = peer
        self.told.set()

    async def remove_peer(self, network_id: str, ip: IPAddress) -> None:
        self.peers.pop((network_id, ip), None)
        self.told.set()

    async def set_peers(self, network_id: str, peers: Iterable[Peer]) -> tuple[Failure, ...]:
        self.peers = {k: v for k, v in self.peers.items() if k[0] != network_id}
        self.peers.update({(network_id, peer.ip): peer for peer in peers})
        self.told.set()
        return ()

    async def reconcile(self, wanted: Wanted) -> Report:
        self.wanted = wanted
        self.networks = {each.id: each for each in wanted.networks}
        gone = tuple(each.id for each in wanted.endpoints if each.id not in self.kernel)
        self.endpoints = {each.id: each for each in wanted.endpoints if each.id in self.kernel}
        self.peers = {(each.network_id, each.ip): each for each in wanted.peers}
        return Report(adopted=tuple(self.endpoints), gone=gone)

    async def counters(self, network_id: str) -> VxlanCounters:
        raise NotFoundError(network_id)

    async def exit_addresses(self, endpoint_id: str) -> tuple[ipaddress.IPv4Address, ...]:
        found = self.endpoints.get(endpoint_id)
        return (ipaddress.IPv4Address("172.30.0.2"),) if found and found.default_route else ()

    async def within(self, network_id: str, step: Callable[[Nft], Any]) -> Any:
        raise NotFoundError(network_id)

    async def change_vips(self, network_id: str, add: Any, drop: Any) -> None:
        raise NotFoundError(network_id)


@dataclass
class FakeDiscovery:
    log: Log
    served: dict[str, tuple[str, ...]] = field(default_factory=dict)
    upstreams: dict[str, tuple[str, ...]] = field(default_factory=dict)
    errors: list[SwarmError] = field(default_factory=list)

    async def serve(
        self,
        key: str,
        netns_path: str,
        *,
        networks: tuple[str, ...],
        upstreams: tuple[str, ...] = (),
    ) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.served[key] = networks
        self.upstreams[key] = upstreams
        self.log.append(("serve",))

    async def update(
        self, key: str, networks: tuple[str, ...], upstreams: tuple[str, ...] | None = None
    ) -> None:
        self.served[key] = networks
        if upstreams is not None:
            self.upstreams[key] = upstreams

    async def stop(self, key: str) -> None:
        self.served.pop(key, None)
        self.log.append(("stop",))


@dataclass
class World:
    """A node's surroundings; ``start`` makes a coordinator in them, as each life of an agent does."""

    run: RunDirectory
    log: Log = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run.prepare()
        self.session = FakeSession(self.log)
        self.session.up.set()
        self.gossip = FakeGossip(self.log)
        self.dataplane = FakeDataplane(self.log)
        self.discovery = FakeDiscovery(self.log)
        # Neither runs: they only note what they are told.
        self.balancer = Balancer(self.dataplane)
        self.mesh = Mesh(self.dataplane, self.balancer, routers=self.run.path, vtep=VTEP)
        self.node: model.Node | None = None
        self.names = NameTable()
        for number in (1, 2):
            self.session.networks[f"backend{number}"] = network(number)

    @contextlib.asynccontextmanager
    async def start(self, *, gossip: bool = True) -> AsyncIterator[Coordinator]:
        ports = HostPorts(self.balancer)
        coordinator = Coordinator(
            vtep=VTEP,
            session=self.session,
            dataplane=self.dataplane,
            balancer=self.balancer,
            mesh=self.mesh,
            ports=ports,
            node=self.node,
            discovery=self.discovery,
            names=self.names,
            run_dir=self.run,
        )
        self.session.assigned = coordinator.task_assigned
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            holding = group.create_task(ports.run())
            running = group.create_task(coordinator.run())
            await coordinator.ready()
            if gossip:
                coordinator.set_gossip(self.gossip)
            yield coordinator
            running.cancel()
            holding.cancel()

    def restarted(self) -> World:
        """The same machine and manager under a new agent."""
        fresh = World(self.run)
        fresh.session.known = self.session.known
        fresh.session.next_host = self.session.next_host
        fresh.dataplane.kernel = set(self.dataplane.endpoints)
        return fresh


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(RunDirectory(tmp_path))


def request(target: str = "backend1", **changes: Any) -> AttachRequest:
    values: dict[str, Any] = {
        "target": target,
        "container_id": CONTAINER,
        "container_name": "web",
        "netns": "/proc/1/ns/net",
    }
    return AttachRequest(**{**values, **changes})


def peer_change(
    key: str, ip: str, *, owner: str = "other", vtep: str = "192.0.2.20", kind: str = "create"
) -> TableChange:
    last = int(ip.partition("/")[0].rpartition(".")[2])
    record = PeerRecord(
        endpoint_ip=ip, endpoint_mac=f"02:42:0a:00:01:{last:02x}", tunnel_endpoint_ip=vtep
    )
    return TableChange(
        kind=ChangeKind(kind),
        table=PEER_TABLE,
        network=network().id,
        key=key,
        owner=owner,
        value=record.encode(),
        previous=None,
    )


def name_change(key: str, name: str, ip: str, *, kind: str = "create") -> TableChange:
    return TableChange(
        kind=ChangeKind(kind),
        table=ENDPOINT_TABLE,
        network=network().id,
        key=key,
        owner="other",
        value=EndpointRecord(name=name, endpoint_ip=ip).encode(),
        previous=None,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the test's time-out says if it never does."""
    while not condition():  # noqa: ASYNC110  # turns of the loop, no time passes
        await asyncio.sleep(0)


async def test_attach_does_everything_in_order(world: World) -> None:
    async with world.start() as coordinator:
        attachment = await coordinator.attach(request(aliases=("api",)))
    assert attachment.addresses == ("10.0.1.2/24",)
    assert attachment.mac == "02:42:0a:00:01:02"
    assert attachment.interface == "eth0"
    # The container can ask for names before there are any. Others learn the way while the kernel works, and
    # the name when it leads somewhere.
    steps = [entry[0] for entry in world.log]
    assert steps == ["ask", "serve", "join", "put_network", "put", "plug", "put", "report"]
    assert world.discovery.served == {CONTAINER: (network().id,)}
    assert [entry[1] for entry in world.log if entry[0] == "put"] == [PEER_TABLE, ENDPOINT_TABLE]
    assert world.session.statuses == {"task2": TaskState.RUNNING}
    records = {table: value for (table, _, _), value in world.gossip.held.items()}
    assert decode_peer_untrusted(records[PEER_TABLE]) == PeerRecord(
        endpoint_ip="10.0.1.2/24",
        endpoint_mac="02:42:0a:00:01:02",
        tunnel_endpoint_ip=str(VTEP),
    )
    named = decode_endpoint_untrusted(records[ENDPOINT_TABLE])
    assert (named.name, named.task_aliases) == ("web", ("api", CONTAINER[:12]))
    found = world.names.lookup([network().id], "api", "A")
    assert found.addresses == (ipaddress.ip_address("10.0.1.2"),)


async def test_detach_is_the_reverse_and_takes_the_network_with_it(world: World) -> None:
    async with world.start() as coordinator:
        attachment = await coordinator.attach(request())
        world.log.clear()
        await coordinator.detach(attachment.endpoint_id)
        await until(lambda: ("release", "task2") in world.log)
    steps = [entry[0] for entry in world.log]
    assert steps == [
        "delete",
        "delete",
        "unplug",
        "stop",
        "leave",
        "remove_network",
        "release",
    ]
    assert [entry[1] for entry in world.log if entry[0] == "delete"] == [ENDPOINT_TABLE, PEER_TABLE]
    assert not world.gossip.held
    assert world.run.attachments() == []
    assert world.run.networks() == []
    assert not world.names.lookup([network().id], "web", "A").known


async def test_a_network_stays_while_another_endpoint_is_on_it(world: World) -> None:
    async with world.start() as coordinator:
        first = await coordinator.attach(request())
        await coordinator.attach(request(container_id="d" * 64, container_name="other"))
        await coordinator.detach(first.endpoint_id)
        assert network().id in world.dataplane.networks
        assert network().id in world.gossip.joined


async def test_interfaces_are_numbered_and_the_first_network_is_the_way_out(world: World) -> None:
    async with world.start() as coordinator:
        one = await coordinator.attach(request("backend1"))
        two = await coordinator.attach(request("backend2"))
        assert (one.interface, two.interface) == ("eth0", "eth1")
        assert (one.default_route, two.default_route) == (True, False)
        assert world.discovery.served[CONTAINER] == (network(1).id, network(2).id)
        await coordinator.detach(one.endpoint_id)
        again = await coordinator.attach(request("backend1"))
        assert again.interface == "eth0"


async def test_a_foreign_namespace_keeps_its_own_way_out(world: World) -> None:
    async with world.start() as coordinator:
        attachment = await coordinator.attach(request(foreign=True))
    assert not attachment.default_route


async def test_an_internal_network_has_no_name_servers_outside(world: World) -> None:
    inside = network(1)
    world.session.networks["backend1"] = replace(inside, spec=replace(inside.spec, internal=True))
    async with world.start() as coordinator:
        await coordinator.attach(request(upstreams=("192.0.2.53",)))
        assert world.discovery.upstreams[CONTAINER] == ()
        await coordinator.attach(request("backend2"))
        assert world.discovery.upstreams[CONTAINER] == ("192.0.2.53",)


async def test_the_same_network_twice_is_refused(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request())
        for target in ("backend1", network().id):
            with pytest.raises(ConflictError, match="already on network"):
                await coordinator.attach(request(target))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": ""},
        {"container_name": ""},
        {"aliases": ("",)},
        {"aliases": tuple(str(i) for i in range(100))},
        {"ipv4": "fd00::1"},
        {"ipv4": "10.0.0.300"},
        {"ipv6": "10.0.0.3"},
    ],
)
async def test_nonsense_is_refused_before_anybody_is_asked(
    world: World, changes: dict[str, Any]
) -> None:
    async with world.start() as coordinator:
        with pytest.raises(InvalidArgumentError):
            await coordinator.attach(request(**changes))
    assert world.log == []


async def test_an_unknown_network_is_the_managers_word(world: World) -> None:
    async with world.start() as coordinator:
        with pytest.raises(NotFoundError, match="network nope not found"):
            await coordinator.attach(request("nope"))
        assert world.discovery.served == {}
        await coordinator.attach(request())
        with pytest.raises(NotFoundError, match="network nope not found"):
            await coordinator.attach(request("nope"))
        assert world.discovery.served == {CONTAINER: (network().id,)}


async def test_a_drained_node_says_so_at_once(world: World) -> None:
    async with world.start() as coordinator:
        coordinator.node_changed(
            model.Node(spec=model.NodeSpec(availability=NodeAvailability.DRAIN))
        )
        with pytest.raises(PreconditionError, match="drain"):
            await coordinator.attach(request())


async def test_without_a_session_the_cause_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SESSION_TIMEOUT", 0.01)
    world.session.up.clear()
    world.session.last_error = "connection refused by 192.0.2.1:2377"
    async with world.start() as coordinator:
        with pytest.raises(UnavailableError, match=r"connection refused by 192.0.2.1:2377"):
            await coordinator.attach(request())


async def test_a_task_that_never_comes_times_out_and_is_given_back_when_it_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTACH_TIMEOUT", 0.01)
    world.session.hold = True
    async with world.start() as coordinator:
        with pytest.raises(DeadlineError, match="backend1"):
            await coordinator.attach(request())
        world.session.give(world.session.held[0])
        await until(lambda: ("release", "task2") in world.log)


async def test_a_task_assigned_before_the_answer_is_not_taken_for_an_orphan(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request())
        coordinator.sweep()
        await asyncio.sleep(0)
    assert ("release", "task2") not in world.log


async def test_an_attach_costs_the_same_however_many_there_are(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks are gone through after a failure, when one of them may be nobody's."""
    looked: list[int] = []
    tasks = world.session.tasks

    def counting() -> tuple[Task, ...]:
        looked.append(1)
        return tasks()

    async with world.start() as coordinator:
        await asyncio.sleep(0)
        monkeypatch.setattr(world.session, "tasks", counting)
        await coordinator.attach(request())
        await coordinator.attach(request(container_id="d" * 64, container_name="other"))
        assert looked == []
        world.session.errors = [NotFoundError("gone")]
        with pytest.raises(NotFoundError, match="gone"):
            await coordinator.attach(request("backend2"))
        await until(lambda: looked == [1])


async def test_a_rejected_attachment_gives_the_managers_reason(world: World) -> None:
    world.session.hold = True
    async with world.start() as coordinator:
        waiting = asyncio.ensure_future(coordinator.attach(request()))
        await until(lambda: bool(world.session.held))
        await asyncio.sleep(0)
        rejected = replace(
            world.session.held[0], status=TaskStatus(state=TaskState.REJECTED, err="pool is full")
        )
        world.session.give(rejected)
        with pytest.raises(PreconditionError, match="pool is full"):
            await waiting


@pytest.mark.parametrize("step", ["put_network", "plug"])
async def test_a_kernel_that_refuses_leaves_nothing_behind(world: World, step: str) -> None:
    world.dataplane.errors[step] = [HostError("no VXLAN in this kernel")]
    async with world.start() as coordinator:
        with pytest.raises(HostError, match="no VXLAN"):
            await coordinator.attach(request())
        await until(lambda: ("release", "task2") in world.log)
        assert coordinator.attachments() == []
        assert coordinator.overlays() == []
        assert world.run.attachments() == []
        assert world.gossip.joined == set()
        assert world.discovery.served == {}
        assert ("report", "task2", "FAILED") in world.log
        await coordinator.attach(request())


async def test_a_kernel_that_refuses_takes_back_where_the_endpoint_was_to_be(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request(container_id="d" * 64, container_name="other"))
        before = dict(world.gossip.held)
        world.log.clear()
        world.dataplane.errors["plug"] = [HostError("no veth in this kernel")]
        with pytest.raises(HostError, match="no veth"):
            await coordinator.attach(request())
        assert [e for e in world.log if e[0] in {"put", "delete"}] == [
            ("put", PEER_TABLE),
            ("delete", PEER_TABLE),
        ]
        assert world.gossip.held == before


async def test_without_a_name_service_the_attachment_is_given_back(world: World) -> None:
    world.discovery.errors = [HostError("no nftables")]
    async with world.start() as coordinator:
        with pytest.raises(HostError, match="no nftables"):
            await coordinator.attach(request())
        await until(lambda: ("release", "task2") in world.log)
        assert not [entry for entry in world.log if entry[0] in {"put_network", "plug"}]
        assert world.run.attachments() == []


async def test_a_failing_name_service_unplugs_a_services_endpoint_again(world: World) -> None:
    world.discovery.errors = [HostError("no nftables")]
    async with world.start() as coordinator:
        with pytest.raises(HostError, match="no nftables"):
            await service_endpoint(coordinator)
        assert world.dataplane.endpoints == {}
        assert world.run.attachments() == []
        assert not world.gossip.held


async def test_a_caller_that_goes_away_does_not_stop_an_attach(world: World) -> None:
    world.session.hold = True
    async with world.start() as coordinator:
        calling = asyncio.ensure_future(coordinator.attach(request()))
        await until(lambda: bool(world.session.held))
        calling.cancel()
        await asyncio.wait({calling})
        world.session.give(world.session.held[0])
        await until(lambda: world.session.statuses.get("task2") is TaskState.RUNNING)
        assert len(coordinator.attachments()) == 1


async def test_releases_wait_for_a_manager(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.node.releases.PAUSE", 0.001)
    async with world.start() as coordinator:
        attachment = await coordinator.attach(request())
        world.session.detach_errors = [UnavailableError("away"), UnavailableError("still away")]
        await coordinator.detach(attachment.endpoint_id)
        await until(lambda: ("release", "task2") in world.log)


async def test_an_attachment_nobody_knows_is_given_back(world: World) -> None:
    async with world.start():
        orphan = Task(
            id="old",
            spec=TaskSpec(attachment=NetworkAttachmentSpec(container_id="e" * 64)),
            status=TaskStatus(state=TaskState.RUNNING),
        )
        world.session.give(orphan)
        await until(lambda: ("release", "old") in world.log)


VIP = ipaddress.ip_address("10.0.1.200")


def service_request(**changes: Any) -> AttachRequest:
    part = ServicePart(
        service_id="s1", service_name="web", virtual_ips=(str(VIP),), aliases=("www",)
    )
    return request("net1", container_name="web.1.t1", service=part, **changes)


async def service_endpoint(coordinator: Coordinator, address: str = "10.0.1.7/24") -> None:
    assigned = NetworkAttachment(network=network(1), addresses=(address,))
    await coordinator.attach_assigned(service_request(), "t1", assigned)


def published(world: World) -> EndpointRecord | None:
    values = [v for (table, _, _), v in world.gossip.held.items() if table == ENDPOINT_TABLE]
    return decode_endpoint_untrusted(values[0]) if values else None


async def test_a_services_endpoint_is_announced_when_it_serves_and_when_it_drains(
    world: World,
) -> None:
    async with world.start() as coordinator:
        await service_endpoint(coordinator)
        networks = [network(1).id]
        assert "10.0.1.7" in {
            str(peer.addresses[0].ip) for peer in world.dataplane.endpoints.values()
        }
        assert published(world) is None
        assert world.balancer.vips(network(1).id) == ()
        assert not world.names.lookup(networks, "web", "A").known
        coordinator.set_stage(CONTAINER, Stage.SERVING)
        record = published(world)
        assert record is not None
        assert (record.service_id, record.virtual_ip, record.aliases) == ("s1", str(VIP), ("www",))
        assert not record.service_disabled
        assert world.names.lookup(networks, "web", "A").addresses == (VIP,)
        assert [str(a) for a in world.names.lookup(networks, "tasks.web", "A").addresses] == [
            "10.0.1.7"
        ]
        assert world.balancer.vips(network(1).id) == (VIP,)
        coordinator.set_stage(CONTAINER, Stage.DRAINING)
        record = published(world)
        assert record is not None
        assert record.service_disabled
        assert not world.names.lookup(networks, "tasks.web", "A").addresses
        assert world.names.lookup(networks, "web", "A").addresses == (VIP,)


async def test_a_services_endpoint_asks_and_tells_managers_nothing(world: World) -> None:
    async with world.start() as coordinator:
        await service_endpoint(coordinator)
        coordinator.task_removed("t1")
        coordinator.assignments_complete()
        await coordinator.container_gone(CONTAINER)
        assert not coordinator.attachments()
        assert not [line for line in world.log if line[0] in {"report", "release", "attach"}]


async def test_a_services_endpoint_survives_a_restart_in_its_stage(world: World) -> None:
    async with world.start() as coordinator:
        await service_endpoint(coordinator)
        coordinator.set_stage(CONTAINER, Stage.SERVING)
        before = coordinator.attachments()
    world = world.restarted()
    async with world.start() as coordinator:
        await until(lambda: published(world) is not None)
        assert coordinator.attachments() == before
        assert world.dataplane.wanted is not None
        assert world.dataplane.wanted.vips == ((network(1).id, VIP),)
        assert not world.session.statuses


def ingress_node() -> model.Node:
    base = network(1)
    ingress = replace(base, spec=replace(base.spec, ingress=True))
    return model.Node(
        id="n1", attachments=(NetworkAttachment(network=ingress, addresses=("10.0.1.3/24",)),)
    )


def identities(world: World) -> list[PeerRecord]:
    return [
        decode_peer_untrusted(value)
        for (table, _, _), value in world.gossip.held.items()
        if table == PEER_TABLE
    ]


async def test_a_node_takes_part_in_ingress_without_endpoints(world: World) -> None:
    """It tells others where it is under its tunnel device's MAC, and stays after the last task."""
    async with world.start() as coordinator:
        coordinator.node_changed(ingress_node())
        await until(lambda: bool(identities(world)))
        (record,) = identities(world)
        assert (record.endpoint_ip, record.tunnel_endpoint_ip) == ("10.0.1.3/24", str(VTEP))
        assert record.endpoint_mac == vxlan_mac(VTEP, 4097)
        assert network(1).id in world.dataplane.networks
        coordinator.node_changed(ingress_node())
        assert len(identities(world)) == 1


async def test_a_new_agent_keeps_the_ingress_router(world: World) -> None:
    """The first reconcile wants it, with this node's address; nothing is removed and made again."""
    async with world.start() as coordinator:
        coordinator.node_changed(ingress_node())
        await until(lambda: bool(identities(world)))
    world = world.restarted()
    world.node = ingress_node()
    async with world.start():
        assert world.dataplane.wanted is not None
        assert [each.id for each in world.dataplane.wanted.networks] == [network(1).id]
        assert world.dataplane.wanted.vips == ((network(1).id, ipaddress.ip_address("10.0.1.3")),)


async def test_a_port_in_use_fails_the_attach_and_leaves_nothing(world: World) -> None:
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with holder:
        holder.bind(("", 0))
        number = holder.getsockname()[1]
        async with world.start() as coordinator:
            with pytest.raises(ConflictError, match=str(number)):
                await coordinator.attach(request(publish=(f"{number}:80/tcp",)))
            assert not coordinator.attachments()
            assert not world.dataplane.endpoints
            await until(lambda: ("release", "task2") in world.log)
            attachment = await coordinator.attach(request(publish=("0:80/tcp",)))
            assert attachment.published
            assert attachment.published[0].endswith(":80/tcp")


@pytest.mark.parametrize("vip", ["10.0.1.1", "10.0.9.9", "10.0.1.5", "fd00::1"])
async def test_a_record_with_an_impossible_virtual_address_is_no_backend(
    world: World, vip: str
) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request())
        record = EndpointRecord(
            name="x", service_id="s", service_name="web", virtual_ip=vip, endpoint_ip="10.0.1.5"
        )
        coordinator.gossip_changed(
            TableChange(
                kind=ChangeKind.CREATE,
                table=ENDPOINT_TABLE,
                network=network(1).id,
                key="k",
                value=record.encode(),
                previous=None,
                owner="other",
            )
        )
        assert world.balancer.vips(network(1).id) == ()


async def test_a_task_the_manager_shuts_down_is_detached(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request())
        task = replace(world.session.known["task2"], desired_state=TaskState.SHUTDOWN)
        world.session.give(task)
        await until(lambda: not coordinator.attachments())


async def test_a_task_the_manager_lost_is_asked_for_again_with_its_address(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request())
        world.session.known.clear()
        world.log.clear()
        coordinator.assignments_complete()
        await until(lambda: world.session.statuses.get("task3") is TaskState.RUNNING)
        assert ("ask", network().id, ("10.0.1.2",)) in world.log
        assert not [entry for entry in world.log if entry[0] in {"plug", "unplug", "put", "delete"}]
        assert [each.attachment_id for each in coordinator.attachments()] == ["task3"]
        assert [each.attachment_id for each in world.run.attachments()] == ["task3"]


async def test_an_address_that_is_gone_takes_its_endpoint_along(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request())
        world.session.known.clear()
        world.session.errors = [ConflictError("address 10.0.1.2 is taken")]
        coordinator.task_removed("task2")
        await until(lambda: not coordinator.attachments())
        assert world.dataplane.endpoints == {}


class TestGossip:
    async def test_peers_and_names_of_others_arrive(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24"))
            coordinator.gossip_changed(name_change("k1", "db", "10.0.1.9"))
            await world.dataplane.told.wait()
            peer = world.dataplane.peers[network().id, ipaddress.ip_address("10.0.1.9")]
            assert (peer.mac, str(peer.vtep)) == ("02:42:0a:00:01:09", "192.0.2.20")
            assert world.names.lookup([network().id], "db", "A").known

    async def test_many_changes_are_one_batch(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            for host in range(20, 120):
                coordinator.gossip_changed(peer_change(f"k{host}", f"10.0.1.{host}/24"))
            await world.dataplane.told.wait()
            assert len(world.dataplane.peers) == 100

    async def test_own_entries_and_foreign_networks_mean_nothing(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24", owner="self"))
            coordinator.gossip_changed(
                replace(peer_change("k1", "10.0.1.9/24"), network="elsewhere")
            )
            (overlay,) = coordinator.overlays()
            assert len(overlay.peers) == 0

    async def test_garbage_is_refused(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            for table in (PEER_TABLE, ENDPOINT_TABLE):
                change = replace(peer_change("k1", "10.0.1.9/24"), table=table, value=b"\xff\xff")
                coordinator.gossip_changed(change)
            coordinator.gossip_changed(name_change("k2", "evil", "8.8.8.8"))
            (overlay,) = coordinator.overlays()
            assert len(overlay.peers) == 0
            assert not world.names.lookup([network().id], "evil", "A").known

    async def test_a_dead_owners_entries_stay_for_a_while(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agent.node.mirror.LINGER_PEER", 0.02)
        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24"))
            await world.dataplane.told.wait()
            world.dataplane.told.clear()
            world.gossip.states["other"] = State.DEAD
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24", kind="delete"))
            assert len(world.dataplane.peers) == 1
            await world.dataplane.told.wait()
            assert len(world.dataplane.peers) == 0

    async def test_a_dead_owners_peers_stay_as_long_as_gossip_may_show_them_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its containers may run on; but who came in at that node finds another way in sooner."""
        monkeypatch.setattr("agent.node.mirror.LINGER_INGRESS", 0.02)
        ordinary, ingress = network(2).id, network(1).id
        async with world.start() as coordinator:
            coordinator.node_changed(ingress_node())
            await until(lambda: bool(identities(world)))
            world.session.networks["backend2"] = network(2)
            await coordinator.attach(request(target="backend2"))
            changes = [
                peer_change("k1", "10.0.1.9/24"),
                replace(peer_change("k2", "10.0.2.9/24"), network=ordinary),
            ]
            for change in changes:
                coordinator.gossip_changed(change)
            await until(lambda: {net for net, _ in world.dataplane.peers} == {ordinary, ingress})
            kept = coordinator.overlay(ordinary)
            assert [each.endpoint_id for each in remote_endpoints(kept)] == ["k2"]
            world.gossip.states["other"] = State.DEAD
            for change in changes:
                coordinator.gossip_changed(replace(change, kind=ChangeKind.DELETE))
            assert not remote_endpoints(kept), "shown is what gossip knows"
            await until(lambda: {net for net, _ in world.dataplane.peers} == {ordinary})
            (due,) = coordinator._mirror._lingering.values()
            left = due - asyncio.get_running_loop().time()
            assert left == pytest.approx(LAN.tombstone_age, abs=30)

    async def test_a_dead_owners_backend_gets_flows_only_while_there_is_no_other(
        self, world: World
    ) -> None:
        """Before it is forgotten; and as before when its owner is heard again."""

        def told(key: str, ip: str, owner: str, kind: str = "create") -> TableChange:
            record = EndpointRecord(
                name=key, endpoint_ip=ip, service_name="web", service_id="s", virtual_ip=str(VIP)
            )
            change = replace(name_change(key, key, ip, kind=kind), owner=owner)
            return replace(change, value=record.encode())

        def slots() -> set[str]:
            found = world.balancer._networks[network(1).id].table.slots(VIP)
            return set() if found is None else {str(each) for each in found.backs}

        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(told("k1", "10.0.1.9", "other"))
            coordinator.gossip_changed(told("k2", "10.0.1.10", "third"))
            assert slots() == {"10.0.1.9", "10.0.1.10"}
            world.gossip.states["other"] = State.DEAD
            coordinator.gossip_changed(told("k1", "10.0.1.9", "other", "delete"))
            assert slots() == {"10.0.1.10"}
            world.gossip.states["third"] = State.ALIVE
            coordinator.gossip_changed(told("k2", "10.0.1.10", "third", "delete"))
            assert slots() == {"10.0.1.9"}
            world.gossip.states["other"] = State.ALIVE
            coordinator.gossip_changed(told("k2", "10.0.1.10", "third"))
            coordinator.gossip_changed(told("k1", "10.0.1.9", "other"))
            assert slots() == {"10.0.1.9", "10.0.1.10"}

    async def test_a_restarted_owner_is_not_noticed(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24"))
            await world.dataplane.told.wait()
            world.dataplane.told.clear()
            world.gossip.states["other"] = State.DEAD
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24", kind="delete"))
            world.gossip.states["other"] = State.ALIVE
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24"))
            await until(lambda: not coordinator.overlays()[0].pending)
            assert len(world.dataplane.peers) == 1

    async def test_a_living_owners_delete_counts_at_once(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24"))
            await world.dataplane.told.wait()
            world.dataplane.told.clear()
            world.gossip.states["other"] = State.ALIVE
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24", kind="delete"))
            await world.dataplane.told.wait()
            assert world.dataplane.peers == {}

    async def test_a_new_gossip_node_hears_of_every_endpoint(self, world: World) -> None:
        async with world.start(gossip=False) as coordinator:
            await coordinator.attach(request())
            assert not world.gossip.held
            coordinator.set_gossip(world.gossip)
            assert {table for table, _, _ in world.gossip.held} == {PEER_TABLE, ENDPOINT_TABLE}


class TestRestart:
    async def test_nothing_changes_for_anybody(self, world: World) -> None:
        async with world.start() as coordinator:
            before = await coordinator.attach(request(aliases=("api",)))
            coordinator.gossip_changed(peer_change("k1", "10.0.1.9/24"))
            coordinator.gossip_changed(name_change("k1", "db", "10.0.1.9"))
            await world.dataplane.told.wait()
        fresh = world.restarted()
        async with fresh.start() as coordinator:
            assert coordinator.attachments() == [before]
            await until(lambda: CONTAINER in fresh.discovery.served)
            await until(lambda: "task2" in fresh.session.statuses)
        assert fresh.dataplane.wanted is not None
        assert [str(peer.ip) for peer in fresh.dataplane.wanted.peers] == ["10.0.1.9"]
        assert fresh.gossip.held == world.gossip.held
        assert fresh.session.statuses == {"task2": TaskState.RUNNING}
        assert fresh.names.lookup([network().id], "db", "A").known
        steps = {entry[0] for entry in fresh.log}
        assert steps.isdisjoint({"ask", "plug", "unplug", "release", "put_network", "delete"})

    async def test_a_container_that_ended_meanwhile_is_detached(self, world: World) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
        fresh = world.restarted()
        fresh.dataplane.kernel.clear()
        async with fresh.start() as coordinator:
            await until(lambda: ("release", "task2") in fresh.log)
            assert coordinator.attachments() == []
        assert fresh.run.networks() == []

    async def test_remembered_entries_nobody_repeats_are_dropped_in_the_end(
        self, world: World
    ) -> None:
        async with world.start() as coordinator:
            await coordinator.attach(request())
            coordinator.gossip_changed(peer_change("k1", "10.0.1.8/24"))
            coordinator.gossip_changed(peer_change("k2", "10.0.1.9/24"))
            await world.dataplane.told.wait()
        fresh = world.restarted()
        async with fresh.start() as coordinator:
            assert len(fresh.dataplane.peers) == 2
            coordinator.gossip_changed(peer_change("k2", "10.0.1.9/24"))
            coordinator.confirm()
            await fresh.dataplane.told.wait()
            assert [str(ip) for _, ip in fresh.dataplane.peers] == ["10.0.1.9"]

    async def test_a_damaged_record_is_dropped_and_its_attachment_given_back(
        self, world: World, tmp_path: Path
    ) -> None:
        async with world.start() as coordinator:
            attachment = await coordinator.attach(request())
        path = tmp_path / "attachments" / f"{attachment.endpoint_id}.json"
        path.write_text(path.read_text()[:40])
        fresh = world.restarted()
        async with fresh.start() as coordinator:
            assert coordinator.attachments() == []
            await until(lambda: ("release", "task2") in fresh.log)


async def test_leaving_takes_everything_off(world: World) -> None:
    async with world.start() as coordinator:
        await coordinator.attach(request("backend1"))
        await coordinator.attach(request("backend2"))
        await coordinator.detach_all(1.0)
        assert coordinator.attachments() == []
        assert {entry for entry in world.log if entry[0] == "release"} == {
            ("release", "task2"),
            ("release", "task3"),
        }
