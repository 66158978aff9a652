"""The kernel: what routers hold, and the execution of plans. Worker thread only.

Holds one namespace descriptor and one netlink socket per router; a container's namespace is open
only while something is done in it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from agent.dataplane import (
    chamber,
    ethtool,
    exits,
    forwarding,
    inside,
    ipsec,
    names,
    namespace,
    netlink,
    observed,
    programs,
    ruleset,
    shortcut,
    sysctl,
)
from agent.dataplane.chamber import Chamber
from agent.dataplane.channel import GONE, Channel, KernelError
from agent.dataplane.executor import HomeRoute
from agent.dataplane.model import Encryption, IPAddress, NetnsRef, Settings, VxlanCounters
from agent.dataplane.names import (
    DEVICE_GROUP,
    EXIT_PREFIX,
    LOOPBACK,
    MESH_DEVICE,
    MESH_TABLE,
    PORT_PREFIX,
    ROUTE_PROTOCOL,
    TABLE,
    VXLAN_PREFIX,
)
from agent.dataplane.netlink import Message
from agent.dataplane.nft import Nft
from agent.dataplane.objects import (
    Address,
    Drop,
    ExitTable,
    Fdb,
    Inside,
    Key,
    Label,
    Member,
    Neighbour,
    Object,
    Offload,
    Op,
    Port,
    Put,
    Remotes,
    Route,
    Ruleset,
    Shortcut,
    State,
    Sysctl,
    Tap,
    Vxlan,
)
from agent.dataplane.planner import keyed
from agent.dataplane.reaper import Reaper
from agent.dataplane.shield import SHIELD
from agent.dataplane.underlay import Underlay
from swarm.errors import (
    ConflictError,
    HostError,
    InvalidArgumentError,
    InvariantError,
    NotFoundError,
    SwarmError,
)

T = TypeVar("T")

log = structlog.get_logger(component="agent.dataplane")


@dataclass(slots=True)
class _Router:
    name: str
    fd: int
    channel: Channel
    sysctls: sysctl.Tree
    nft: Nft | None = None


class Kernel:
    """Executes operations in router namespaces and says what they hold."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = namespace.open_own()
        self._store = namespace.Store(settings.run_dir / "netns", self._home)
        self._underlay = Underlay()
        self._ipsec = ipsec.Ipsec(settings)
        self._reaper = Reaper()
        self._chamber: Chamber | None = None
        self._sysctls = sysctl.Source()
        self._program: int | None = None  # -1: the kernel does not take it
        self._open: dict[str, _Router] = {}
        self._adopt(exits.HOME, os.dup(self._home))

    def close(self) -> None:
        """Let go of everything; the kernel's state stays."""
        self._reaper.close()
        self.close_chamber()
        self._sysctls.close()
        if self._program is not None and self._program >= 0:
            os.close(self._program)
        for router in list(self._open.values()):
            self._forget(router)
        self._ipsec.close()
        self._underlay.close()
        os.close(self._home)

    # --- routers -----------------------------------------------------------------------------

    def routers(self) -> tuple[str, ...]:
        """Return the names of all router namespaces on disk."""
        return self._store.names()

    def make_router(self, name: str) -> bool:
        """Make a router's namespace unless it exists; returns whether it was made."""
        if name in self._open:
            return False
        fd = self._store.open(name)
        made = fd is None
        self._adopt(name, self._store.make(name) if fd is None else fd)
        # Also in one found: its maker may have died before this.
        self._open[name].channel.check([netlink.set_link(LOOPBACK, up=True)])
        return made

    def drop_router(self, name: str) -> None:
        """Remove a router with everything in it; an absent one is no error."""
        try:
            router = self._router(name)
        except NotFoundError:
            return
        # Devices first: a namespace ends later, on its own, and a VNI would stay taken until then.
        # One message for all of them costs one grace period instead of thousands.
        self._remove(
            router,
            netlink.delete_group(DEVICE_GROUP),
            lambda: len(router.channel.dump(netlink.all_links())) == 1,  # lo
        )
        self._forget(router)
        self._store.drop(name)

    def drop_exits(self) -> None:
        """Remove all ways out from the daemon's namespace."""
        home = self._router(exits.HOME)
        home.channel.check([netlink.delete_group(DEVICE_GROUP)])
        with self._nft(home) as nft:
            table = exits.observed(self._settings, nft.table("inet", TABLE))
            if table is None:
                return
            mesh = home.channel.link(MESH_DEVICE) is not None
            kept = names.mesh_closed(nft.chains("inet", MESH_TABLE)) if mesh else frozenset()
            for version in table.closed - kept:
                forwarding.switch(version, on=False)  # as it was before us
            nft.run(exits.destroy())

    def forwarding(self, version: int) -> bool:
        """Tell whether the daemon's namespace forwards packets of an IP version."""
        return forwarding.forwards(version)

    def close_store(self) -> None:
        """Remove the directory of router namespaces."""
        self._store.close()

    def _adopt(self, name: str, fd: int) -> None:
        with namespace.entered(fd, self._home):
            tree = sysctl.Tree()
        self._open[name] = _Router(name, fd, self._channel(fd), tree)

    def _channel(self, fd: int) -> Channel:
        with namespace.entered(fd, self._home):
            return Channel()

    def _remove(self, router: _Router, message: Message, gone: Callable[[], bool]) -> None:
        self._reaper.remove(message, self._channel(router.fd), gone)

    def _router(self, name: str) -> _Router:
        if name not in self._open:
            fd = self._store.open(name)
            if fd is None:
                raise NotFoundError(f"there is no router namespace {name}")
            self._adopt(name, fd)
        return self._open[name]

    def _forget(self, router: _Router) -> None:
        del self._open[router.name]
        router.channel.close()
        router.sysctls.close()
        if router.nft is not None:
            router.nft.close()
        os.close(router.fd)

    @contextlib.contextmanager
    def _nft(self, router: _Router) -> Iterator[Nft]:
        with namespace.entered(router.fd, self._home):
            if router.nft is None:
                router.nft = Nft()
            yield router.nft

    def within(self, name: str, step: Callable[[Nft], T]) -> T:
        """Run a step in a router's namespace."""
        with _host_errors(), self._nft(self._router(name)) as nft:
            return step(nft)

    # --- questions ---------------------------------------------------------------------------

    def home_routes(self) -> tuple[HomeRoute, ...]:
        """Return the routes of the daemon's namespace that are not ours, default routes excepted."""
        found: list[HomeRoute] = []
        with _host_errors():
            channel = self._router(exits.HOME).channel
            for version in (4, 6):
                for row in map(netlink.parse_route, channel.dump(netlink.all_routes(version))):
                    if (
                        row.kind != netlink.RTN_UNICAST
                        or row.protocol == ROUTE_PROTOCOL
                        or row.target.prefixlen == 0
                        or row.target.is_link_local
                    ):
                        continue
                    device = ""  # of a route by several ways at once
                    with contextlib.suppress(OSError):
                        device = socket.if_indextoname(row.device)
                    direct = row.via is None and row.device != 0
                    found.append(HomeRoute(row.target, device, direct))
        return tuple(found)

    def underlay_mtu(self) -> int | None:
        """Return the MTU of the device that holds the VTEP address."""
        return self._underlay.mtu(self._settings.vtep)

    def underlay_device(self) -> tuple[int, str] | None:
        """Return index and name of the device that holds the VTEP address."""
        device = self._underlay.device(self._settings.vtep)
        return None if device is None else device[:2]

    def open_chamber(self, peers: Collection[IPAddress]) -> Chamber | None:
        """Return the place to try paths from, made when there is none; None without an underlay."""
        with _host_errors():
            mtu = self.underlay_mtu()
            if mtu is None:
                return None
            if self._chamber is None:
                self._chamber = chamber.make(self._settings, self._underlay, self._home, mtu)
            self._chamber.know(peers)
        return self._chamber

    def close_chamber(self) -> None:
        """Remove the place to try paths from."""
        if self._chamber is not None:
            self._chamber.close()
            self._chamber = None

    def shortcuts(self) -> bool:
        """Tell whether packets can be taken past a router's IP stack; the first time, by trying."""
        if self._program is None:
            self._program = -1
            try:
                with _host_errors():
                    self._program = programs.load(self._home)
            except HostError as error:
                log.info("shortcuts.missing", reason=str(error))
        return self._program >= 0

    def prove_encryption(self) -> None:
        """Raise HostError when this kernel cannot carry encrypted networks."""
        with _host_errors():
            ipsec.prove(self._settings, self._home)

    def encryption(self) -> Encryption:
        """Return what carries encrypted networks."""
        with _host_errors():
            return self._ipsec.status()

    def reachable(self, netns: NetnsRef) -> bool:
        """Tell whether the namespace still exists under its path."""
        try:
            os.close(namespace.open_netns(netns.path))
        except SwarmError:
            return False
        return True

    def counters(self, name: str, devices: Iterable[str]) -> VxlanCounters:
        """Return the sum of the devices' counters."""
        router = self._router(name)
        links = [router.channel.link(device) for device in devices]
        rows = [link.counters for link in links if link is not None]
        return VxlanCounters(
            rx_packets=sum(row[0] for row in rows),
            tx_packets=sum(row[1] for row in rows),
            rx_bytes=sum(row[2] for row in rows),
            tx_bytes=sum(row[3] for row in rows),
        )

    def observe(self, name: str, wanted: State) -> dict[Key, Object]:
        """Return what a router holds of ours.

        Sysctls and containers' ends are looked at only where ``wanted`` names them: what nobody
        wants of those is not ours to judge.
        """
        with _host_errors():
            return self._ipsec.observe() if name == SHIELD else self._observe(name, wanted)

    def _observe(self, name: str, wanted: State) -> dict[Key, Object]:
        router = self._router(name)
        dump = router.channel.dump
        links = {link.index: link for link in map(netlink.parse_link, dump(netlink.all_links()))}
        found: list[Object] = []
        prefixes = (EXIT_PREFIX,) if name == exits.HOME else (VXLAN_PREFIX, PORT_PREFIX, "lo")
        links = {i: link for i, link in links.items() if link.name.startswith(prefixes)}
        for link in links.values():
            found += observed.link_objects(link)
        known = {link.index: link.name for link in links.values()}
        found += observed.address_objects(dump(netlink.all_addresses()), known)
        found += observed.neighbour_objects(dump(netlink.all_neighbours()), known)
        for index, device in known.items():
            if device.startswith(VXLAN_PREFIX):
                for entry in map(netlink.parse_entry, dump(netlink.all_fdb(index))):
                    if entry.ip is not None and entry.device == index:
                        found.append(Fdb(ifname=device, mac=entry.mac, vtep=entry.ip))
        for version in (4, 6):
            found += observed.route_objects(dump(netlink.all_routes(version)), known)
        if name != exits.HOME:
            found += programs.observed(router.channel, known)
        found += self._observed_ruleset(router)
        found += self._observed_sysctls(router, wanted)
        indexes = {device: index for index, device in known.items()}
        return keyed(found) | self._insides(wanted, indexes)

    def observe_insides(self, name: str, wanted: State) -> dict[Key, Object]:
        """Return the containers' ends that ``wanted`` names, as they are."""
        with _host_errors():
            return self._observe_insides(self._router(name).channel, wanted)

    def _observe_insides(self, channel: Channel, wanted: State) -> dict[Key, Object]:
        links = (channel.link(item.ifname) for item in wanted.values() if item.ifname)
        return self._insides(wanted, {link.name: link.index for link in links if link is not None})

    def _insides(self, wanted: State, ports: dict[str, int]) -> dict[Key, Object]:
        found: dict[Key, Object] = {}
        for key, item in wanted.items():
            if isinstance(item, Inside) and item.ifname in ports:
                end = inside.observe(self._home, item, ports[item.ifname])
                if end is not None:
                    found[key] = end
        return found

    def _observed_ruleset(self, router: _Router) -> list[Object]:
        with self._nft(router) as nft:
            if router.name == exits.HOME:
                table = exits.observed(self._settings, nft.table("inet", TABLE))
                return [] if table is None else [table]
            tables, members = ruleset.observed(
                {family: nft.table(family, TABLE) for family in ruleset.FAMILIES}
            )
        return [] if tables is None else [tables, *members]

    def _observed_sysctls(self, router: _Router, wanted: State) -> list[Object]:
        found: list[Object] = []
        with namespace.entered(router.fd, self._home):
            for item in wanted.values():
                if isinstance(item, Offload):
                    on = ethtool.checksums(item.ifname)
                    found.append(Offload(ifname=item.ifname, checksums=on))
                elif isinstance(item, Sysctl):
                    value = router.sysctls.read(item.path)
                    if value is not None:
                        found.append(Sysctl(path=item.path, value=value, ifname=item.ifname))
        return found

    # --- execution ---------------------------------------------------------------------------

    def apply(self, name: str, ops: Sequence[Op]) -> None:
        """Execute operations in order; stops at the first that fails.

        Raises:
            ConflictError: something of another's is in the way.
            NotFoundError: a container's namespace has ended.
            HostError: the kernel refused.
        """
        if name == SHIELD:
            with _host_errors():
                self._ipsec.apply(ops)
            return
        router = self._router(name)
        handlers: dict[str, Callable[[_Router, list[Op]], None]] = {
            "sysctl": self._apply_sysctls,
            "vxlan": self._apply_vxlans,
            "port": self._apply_ports,
            "inside": self._apply_insides,
            "nft": self._apply_nft,
            "netlink": self._apply_netlink,
            "shortcut": self._apply_shortcuts,
            "remotes": self._apply_remotes,
        }
        with _host_errors():
            for channel, group in itertools.groupby(ops, key=lambda op: _CHANNEL[type(op.object)]):
                handlers[channel](router, list(group))

    def _apply_sysctls(self, router: _Router, ops: list[Op]) -> None:
        with namespace.entered(router.fd, self._home):
            for op in ops:
                if isinstance(op, Put) and isinstance(op.object, Sysctl):
                    if router.name == exits.HOME and op.object.path == forwarding.PATHS[6]:
                        forwarding.switch(6, on=op.object.value == "1")
                        continue
                    router.sysctls.write(op.object.path, op.object.value)
                elif isinstance(op, Put) and isinstance(op.object, Offload):
                    ethtool.set_checksums(op.object.ifname, on=op.object.checksums)

    def _apply_nft(self, router: _Router, ops: list[Op]) -> None:
        commands: list[str] = []
        for op in ops:
            add = isinstance(op, Put)
            if isinstance(op.object, Ruleset):
                commands.append(ruleset.build(op.object) if add else ruleset.destroy())
            elif isinstance(op.object, ExitTable):
                text = exits.build(self._settings, op.object) if add else exits.destroy()
                commands.append(text)
            elif isinstance(op.object, Member):
                if not add:
                    # "add" first: an absent element is then no error, as with every other Drop.
                    commands.append(ruleset.element(op.object, add=True))
                commands.append(ruleset.element(op.object, add=add))
        with self._nft(router) as nft:
            nft.run("\n".join(commands))

    def _apply_vxlans(self, router: _Router, ops: list[Op]) -> None:
        for op in ops:
            vxlan = op.object
            if isinstance(op, Drop):
                self._drop_link(router, vxlan.ifname or "")
            elif isinstance(vxlan, Vxlan):
                if router.channel.link(vxlan.name) is None:
                    self._underlay.make_vxlan(vxlan, router.fd)
                index = router.channel.index(vxlan.name)
                router.channel.check([netlink.set_link(index, up=True, mtu=vxlan.mtu)])

    def _apply_ports(self, router: _Router, ops: list[Op]) -> None:
        for op in ops:
            port = op.object
            if isinstance(op, Drop):
                self._drop_link(router, port.ifname or "")
            elif isinstance(port, Port):
                if router.channel.link(port.name) is None:
                    self._make_port(router, port)
                index = router.channel.index(port.name)
                router.channel.check([netlink.set_link(index, up=True, mtu=port.mtu)])

    def _drop_link(self, router: _Router, name: str) -> None:
        self._remove(router, netlink.delete_link(name), lambda: router.channel.link(name) is None)

    def _make_port(self, router: _Router, port: Port) -> None:
        if port.netns is None:
            raise InvariantError(f"port {port.name} has no namespace to lead to")
        fd = namespace.open_netns(port.netns.path)
        try:
            if namespace.same(fd, self._home):
                raise InvalidArgumentError("a container must have a network namespace of its own")
            message = netlink.veth(
                name=port.name,
                mac=port.mac,
                mtu=port.mtu,
                group=DEVICE_GROUP,
                peer=port.inside_ifname,
                peer_mac=port.inside_mac,
                peer_netns=fd,
            )
            router.channel.check([message])
            if router.name == exits.HOME:
                # Before it is up: a router's own default says so, the host's is not ours to set.
                index = router.channel.index(port.name)
                router.channel.check([netlink.no_link_local(index)])
        except KernelError as error:
            if error.number == errno.EEXIST:
                raise ConflictError(
                    f"the container already has an interface {port.inside_ifname}"
                ) from error
            raise
        finally:
            os.close(fd)

    def _apply_insides(self, _router: _Router, ops: list[Op]) -> None:
        for op in ops:
            if isinstance(op, Put) and isinstance(op.object, Inside):
                inside.put(self._home, op.object, self._sysctls)

    def _apply_netlink(self, router: _Router, ops: list[Op]) -> None:
        indexes: dict[str, int] = {}
        messages: list[Message] = []
        sent: list[Op] = []
        for op in ops:
            add = isinstance(op, Put)
            ifname = op.object.ifname
            if ifname is not None and ifname not in indexes:
                try:
                    indexes[ifname] = router.channel.index(ifname)
                except KernelError as error:
                    if add or error.number not in GONE:
                        raise
                    continue  # it went, and what was on it
            sent.append(op)
            messages.append(_message(op.object, indexes.get(ifname or "", 0), add=add))
        try:
            router.channel.check(messages)
        except KernelError as error:
            text = f"the kernel refused {sent[error.position]}: {error}"
            raise KernelError(text, error.number, error.position) from error

    def _apply_remotes(self, router: _Router, ops: list[Op]) -> None:
        for op in ops:
            many, add = op.object, isinstance(op, Put)
            if not isinstance(many, Remotes):
                continue
            link = router.channel.link(many.ifname)
            if link is not None:
                texts = netlink.remotes(link.index, many.peers, add=add)
                if router.channel.pour(texts, each=3):
                    continue
            # One by one, to know which the kernel does not take, and why.
            self._apply_netlink(router, [type(op)(part) for part in many.parts()])

    def _apply_shortcuts(self, router: _Router, ops: list[Op]) -> None:
        for op in ops:
            item = op.object
            if not isinstance(item, Shortcut):
                continue
            if isinstance(op, Drop):
                router.channel.check([netlink.delete_classifiers(shortcut.BLOCK)])
            elif self.shortcuts() and self._program is not None:
                message = netlink.classifier(shortcut.BLOCK, item.name, self._program)
                router.channel.check([message])


@contextlib.contextmanager
def _host_errors() -> Iterator[None]:
    """Turn what the operating system raises into an error that is handled like a refusal."""
    try:
        yield
    except OSError as error:
        raise KernelError(f"the host failed: {error}", error.errno or 0) from error


_CHANNEL: dict[type, str] = {
    Sysctl: "sysctl",
    Offload: "sysctl",
    Vxlan: "vxlan",
    Port: "port",
    Inside: "inside",
    Ruleset: "nft",
    ExitTable: "nft",
    Member: "nft",
    Shortcut: "shortcut",
    Tap: "netlink",
    Address: "netlink",
    Neighbour: "netlink",
    Fdb: "netlink",
    Remotes: "remotes",
    Route: "netlink",
    Label: "netlink",
}


def _message(item: Object, index: int, *, add: bool) -> Message:
    match item:
        case Tap():
            return netlink.tap(index, item.block, add=add)
        case Address():
            return netlink.address(index, item.address, add=add)
        case Neighbour():
            return netlink.neighbour(index, item.ip, item.mac, add=add)
        case Fdb():
            return netlink.fdb(index, item.mac, item.vtep, add=add)
        case Label():
            return netlink.set_link(index, alias=item.text if add else "")
        case Route():
            through = index if item.ifname is not None and add else None
            if item.kind == "local":
                through = LOOPBACK
            return netlink.route(
                item.target, index=through, kind=observed.KINDS[item.kind], add=add
            )
        case _:
            raise InvariantError(f"{item} is not a netlink object")
