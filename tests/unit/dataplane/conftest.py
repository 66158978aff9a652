"""An interpreter of kernel operations, as strict as the kernel about what must come first."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import forwarding, names
from agent.dataplane.executor import HomeRoute
from agent.dataplane.exits import HOME
from agent.dataplane.model import (
    Encryption,
    Endpoint,
    IPAddress,
    IpsecKey,
    NetnsRef,
    Network,
    Peer,
    Settings,
    Subnet,
    VxlanCounters,
)
from agent.dataplane.objects import (
    Association,
    Cover,
    Drop,
    Fdb,
    Guards,
    Inside,
    Key,
    Label,
    Member,
    Object,
    Op,
    Policy,
    Port,
    Remotes,
    Route,
    Ruleset,
    Shortcut,
    State,
    Sysctl,
    Vxlan,
)
from agent.dataplane.shield import SHIELD
from swarm.errors import ConflictError, HostError, NotFoundError

VTEP = ipaddress.ip_address("192.0.2.1")


class FakeKernel:
    """Routers as dictionaries of objects; containers as sets of interface names."""

    def __init__(self) -> None:
        self.held: dict[str, dict[Key, Object]] = {}
        self.home: dict[Key, Object] = {}
        self.shield: dict[Key, Object] = {}
        self.device: tuple[int, str] | None = (2, "eth0")
        self.lacks = ""
        self.proofs = 0
        self.watched = True
        self.boxes: dict[str, set[str]] = {}
        self.mtu: int | None = 1500
        self.routes: tuple[HomeRoute, ...] = ()
        self.applied = 0
        self.fail_after: int | None = None
        self.quick = True

    # --- what the engine asks ----------------------------------------------------------------

    def routers(self) -> tuple[str, ...]:
        """Return all names."""
        return tuple(self.held)

    def make_router(self, name: str) -> bool:
        """Make one."""
        made = name not in self.held
        self.held.setdefault(name, {})
        return made

    def drop_router(self, name: str) -> None:
        """Remove one."""
        for item in list(self.held.get(name, {}).values()):
            if isinstance(item, Port):
                self._drop_link(self.held[name], item)
        self.held.pop(name, None)

    def close_store(self) -> None:
        """Nothing may be left."""
        assert not self.held

    def drop_exits(self) -> None:
        """Remove the ways out."""
        for item in list(self.home.values()):
            if isinstance(item, Port):
                self._drop_link(self.home, item)
        self.home.clear()

    def forwarding(self, version: int) -> bool:
        """Tell whether the switch is on; the host did not forward before us."""
        return ("sysctl", forwarding.PATHS[version]) in self.home

    def _place(self, name: str) -> dict[Key, Object]:
        places = {HOME: self.home, SHIELD: self.shield}
        return places[name] if name in places else self.held[name]

    def home_routes(self) -> tuple[HomeRoute, ...]:
        """Return what the test set."""
        return self.routes

    def underlay_mtu(self) -> int | None:
        """Return what the test set."""
        return self.mtu

    def underlay_device(self) -> tuple[int, str] | None:
        """Return what the test set."""
        return self.device

    def shortcuts(self) -> bool:
        """Return what the test set."""
        return self.quick

    def prove_encryption(self) -> None:
        """Refuse when the test says what is lacking."""
        self.proofs += 1
        if self.lacks:
            raise HostError(self.lacks)

    def encryption(self) -> Encryption:
        """Return how much is held."""
        items = self.shield.values()
        return Encryption(
            vnis=frozenset(item.vni for item in items if isinstance(item, Cover)),
            associations=sum(isinstance(item, Association) for item in items),
        )

    def assert_closed(self) -> None:
        """Assert that nothing of an encrypted network can leave or enter in clear.

        True in between any two operations: each layer is whole while a device of one exists.
        """
        for router in self.held.values():
            for item in router.values():
                if isinstance(item, Vxlan) and item.sources == names.ESP_SOURCES:
                    assert ("guards",) in self.shield
                    assert ("cover", item.vni) in self.shield
                    assert any(
                        isinstance(p, Policy) and p.spi is None for p in self.shield.values()
                    )

    def open_chamber(self, peers: Collection[IPAddress]) -> None:
        """There is no place to try paths from."""

    def close_chamber(self) -> None:
        """There was none."""

    def reachable(self, netns: NetnsRef) -> bool:
        """Tell whether the container lives."""
        return netns.path in self.boxes

    def counters(self, name: str, devices: Iterable[str]) -> VxlanCounters:
        """Return zeros for devices that exist."""
        assert all(("link", device) in self.held[name] for device in devices)
        return VxlanCounters()

    def observe(self, name: str, wanted: State) -> dict[Key, Object]:
        """Return what is held."""
        place = self._place(name)
        return {
            key: item
            for key, item in place.items()
            if (key in wanted or not isinstance(item, Sysctl | Inside))
            and self._has_block(place, item)
        }

    def observe_insides(self, name: str, wanted: State) -> dict[Key, Object]:
        """Return the ends named."""
        return {key: item for key, item in self.held[name].items() if key in wanted}

    def apply(self, name: str, ops: Sequence[Op]) -> None:
        """Execute, or fail where the test wants it."""
        for op, after in zip(ops, [*ops[1:], None], strict=True):
            if self.fail_after is not None:
                if self.fail_after == 0:
                    self.fail_after = None
                    raise HostError("injected")
                self.fail_after -= 1
            self.applied += 1
            parts = op.object.parts() if isinstance(op.object, Remotes) else (op.object,)
            for part in parts:
                if isinstance(op, Drop):
                    self._drop(self._place(name), part)
                else:
                    self._put(self._place(name), part)
            # Guards and VNIs that follow each other are one transaction.
            if self.watched and not (after and isinstance(after.object, Guards | Cover)):
                self.assert_closed()

    # --- what the kernel does ----------------------------------------------------------------

    def _put(self, held: dict[Key, Object], item: Object) -> None:
        if not isinstance(item, Vxlan | Port) and item.ifname not in {None, "lo"}:
            assert ("link", item.ifname) in held, f"{item} before its interface"
        match item:
            case Vxlan():
                old = held.get(item.key)
                assert old is None or (isinstance(old, Vxlan) and old.device == item.device)
                for router in self.held.values():
                    for other in router.values():
                        if isinstance(other, Vxlan) and other.vni == item.vni and other is not old:
                            raise ConflictError(f"VNI {item.vni}")
            case Port():
                old = held.get(item.key)
                if isinstance(old, Port):
                    item = replace(old, mtu=item.mtu)
                else:
                    assert item.netns is not None
                    if item.netns.path not in self.boxes:
                        raise NotFoundError("the container has ended")
                    if item.inside_ifname in self.boxes[item.netns.path]:
                        raise ConflictError("interface name")
                    self.boxes[item.netns.path].add(item.inside_ifname)
                    item = replace(item, endpoint_id="")
            case Label():
                port = held["link", item.ifname]
                assert isinstance(port, Port)
                held[port.key] = replace(port, endpoint_id=item.text)
            case Ruleset():
                assert {("link", device) for device in item.devices} <= held.keys()
                for key in [key for key, old in held.items() if isinstance(old, Member)]:
                    del held[key]
            case Shortcut():
                assert {("tap", device) for device in item.devices} <= held.keys()
            case Member():
                assert ("ruleset",) in held, "an element before its set"
            case Guards():
                for key in [key for key, old in held.items() if isinstance(old, Cover)]:
                    del held[key]
            case Cover():
                assert ("guards",) in held
            case Policy(spi=int()):
                ways = [old for old in held.values() if isinstance(old, Association)]
                assert any((way.spi, way.destination) == (item.spi, item.remote) for way in ways)
            case Fdb():
                assert isinstance(held["link", item.ifname], Vxlan)
            case Route(kind="unicast"):
                assert item.ifname is not None
            case _:
                pass
        held[item.key] = item

    def _drop(self, held: dict[Key, Object], item: Object) -> None:
        if isinstance(item, Vxlan | Port):
            found = held.get(item.key)
            if isinstance(found, Vxlan | Port):
                self._drop_link(held, found)
            return
        if not isinstance(item, Sysctl | Inside):
            held.pop(item.key, None)

    def _drop_link(self, held: dict[Key, Object], link: Vxlan | Port) -> None:
        for key in [key for key, item in held.items() if item.ifname == link.name]:
            del held[key]
        way_in = held.get(("shortcut",))
        if (
            isinstance(way_in, Shortcut)
            and link.name in way_in.devices
            and not self._has_block(held, way_in)
        ):
            del held[way_in.key]
        ruleset = held.get(("ruleset",))
        if isinstance(ruleset, Ruleset) and link.name in ruleset.devices:
            held[ruleset.key] = replace(ruleset, devices=ruleset.devices - {link.name})
        if isinstance(link, Port) and link.netns is not None:
            self.boxes.get(link.netns.path, set()).discard(link.inside_ifname)

    @staticmethod
    def _has_block(held: dict[Key, Object], item: Object) -> bool:
        """Tell whether a device keeps the block that the object is in, if it is in one."""
        if not isinstance(item, Shortcut):
            return True
        return any(("tap", device) in held for device in item.devices)

    def end_box(self, path: str) -> None:
        """End a container: its ends of all veths vanish, and so do ours."""
        del self.boxes[path]
        for held in (*self.held.values(), self.home):
            for item in list(held.values()):
                if isinstance(item, Port) and item.netns is not None and item.netns.path == path:
                    self._drop_link(held, item)


def make_network(
    number: int, *, v6: bool = False, extra: bool = False, mtu: int = 0, **more: Any
) -> Network:
    """Return network ``number``."""
    subnets = [
        Subnet(
            cidr=ipaddress.ip_network(f"10.0.{number}.0/24"),
            gateway=ipaddress.ip_address(f"10.0.{number}.1"),
            vni=4096 + 2 * number,
        )
    ]
    if extra:
        subnets.append(
            Subnet(
                cidr=ipaddress.ip_network(f"10.1.{number}.0/24"),
                gateway=ipaddress.ip_address(f"10.1.{number}.1"),
                vni=4097 + 2 * number,
            )
        )
    if v6:
        subnets.append(
            Subnet(
                cidr=ipaddress.ip_network(f"fd00:{number}::/64"),
                gateway=ipaddress.ip_address(f"fd00:{number}::1"),
            )
        )
    return Network(
        id=f"network{number}xxxxxxxx", name=f"n{number}", subnets=tuple(subnets), mtu=mtu, **more
    )


def make_endpoint(
    network: int, number: int, *, v6: bool = False, box: str = "", out: bool = False
) -> Endpoint:
    """Return an endpoint."""
    addresses = [ipaddress.ip_interface(f"10.0.{network}.{number}/24")]
    if v6:
        addresses.append(ipaddress.ip_interface(f"fd00:{network}::{number}/64"))
    return Endpoint(
        id=f"{network:06x}{number:06x}".ljust(64, "0"),
        network_id=f"network{network}xxxxxxxx",
        container=f"c{number}",
        netns=NetnsRef(path=box or f"/box/{number}"),
        ifname=f"eth{network}",
        mac=f"02:42:0a:00:{network:02x}:{number:02x}",
        addresses=tuple(addresses),
        default_route=out,
    )


def make_peer(network: int, number: int, *, vtep: int = 2, mac: int | None = None) -> Peer:
    """Return a peer record."""
    return Peer(
        network_id=f"network{network}xxxxxxxx",
        ip=ipaddress.ip_address(f"10.0.{network}.{number}"),
        prefixlen=24,
        mac=f"02:42:0a:00:{network:02x}:{mac or number:02x}",
        vtep=ipaddress.ip_address(f"192.0.2.{vtep}"),
    )


def make_key(number: int) -> IpsecKey:
    """Return IPsec key ``number``."""
    return IpsecKey(lamport=number, key=bytes([number]) * 16)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of node 192.0.2.1."""
    return Settings(vtep=VTEP, run_dir=tmp_path)


@pytest.fixture
def kernel() -> FakeKernel:
    """A kernel without routers, with containers /box/2 to /box/9."""
    fake = FakeKernel()
    fake.boxes = {f"/box/{number}": set() for number in range(2, 10)}
    return fake


@pytest.fixture
def make() -> Any:
    """Makers of records."""

    class Make:
        network = staticmethod(make_network)
        endpoint = staticmethod(make_endpoint)
        peer = staticmethod(make_peer)
        kernel = FakeKernel
        key = staticmethod(make_key)

    return Make
