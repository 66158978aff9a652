"""The data plane's memory and decisions, on top of a kernel that executes. Synchronous.

Every call is one step of the worker thread: it validates, changes the kernel, then remembers, and
when the kernel refuses it takes back what it did and remembers nothing. A caller that is
cancelled meanwhile loses the answer, never the consistency.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from agent.dataplane import names
from agent.dataplane.chamber import Chamber
from agent.dataplane.executor import Check, Executor, Machine
from agent.dataplane.exits import HOME
from agent.dataplane.model import (
    Encryption,
    Endpoint,
    Failure,
    IPAddress,
    IpsecKey,
    Network,
    Peer,
    Report,
    Settings,
    Stats,
    VxlanCounters,
    Wanted,
    host_route,
)
from agent.dataplane.mtu import network_mtu
from agent.dataplane.nft import Nft
from agent.dataplane.objects import (
    Drop,
    Inside,
    Key,
    Object,
    Port,
    Put,
    Remotes,
    Route,
    State,
)
from agent.dataplane.planner import NetworkState, keyed, plan
from agent.dataplane.shield import Shield
from agent.dataplane.ways import Ways
from swarm.errors import (
    ConflictError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
    UnimplementedError,
)

T = TypeVar("T")


class Engine:
    """The wanted state of one node and the calls that change it."""

    def __init__(self, settings: Settings, kernel: Machine) -> None:
        self._settings = settings
        self._kernel = kernel
        self._networks: dict[str, NetworkState] = {}
        self._asked: dict[str, Network] = {}
        self._homes: dict[str, str] = {}
        self._underlay: int | None = None
        # What was found on the way to other nodes, where it is less than our own device takes.
        self._paths: dict[IPAddress, int] = {}
        self._software = False
        self._run = Executor(kernel)
        self._ways = Ways(settings, self._run, self._device_mtu)
        self._shield = Shield(settings, self._run)
        # Encrypted networks that are not (quite) held, of which a router may be there all the same.
        self._doubtful: dict[str, frozenset[int]] = {}
        self._guarding = False

    # --- questions ---------------------------------------------------------------------------

    def networks(self) -> tuple[str, ...]:
        """Return the ids of the networks held."""
        return tuple(self._networks)

    def stats(self) -> Stats:
        """Return how much is held."""
        return Stats(
            networks=len(self._networks),
            endpoints=len(self._homes),
            peers=sum(len(state.peers) for state in self._networks.values()),
            path_mtu=min(self._paths.values(), default=0),
            software_checksums=self._software,
            operations=self._run.operations,
        )

    def counters(self, network_id: str) -> VxlanCounters:
        """Return a network's traffic through the tunnel."""
        state = self._state(network_id)
        devices = [names.vxlan_name(s.vni) for s in state.network.subnets if s.vni is not None]
        return self._kernel.counters(names.router_name(network_id), devices)

    def path_mtu(self, *, encrypted: bool) -> int:
        """Return the MTU that containers get by default on this node."""
        family = self._settings.vtep.version
        return network_mtu(0, self._under(), family, encrypted)

    def _state(self, network_id: str) -> NetworkState:
        state = self._networks.get(network_id)
        if state is None:
            raise NotFoundError(f"network {network_id} is not on this node")
        return state

    # --- networks ----------------------------------------------------------------------------

    def put_network(self, network: Network) -> None:
        """Make a network, or change it into what it is now."""
        fitted = self._fit(network)
        old = self._networks.get(network.id)
        if old is not None and old.network == fitted:
            self._asked[network.id] = network
            return
        self._check_network(fitted)
        if names.router_name(network.id) not in self._kernel.routers():
            self._check_routes(fitted)
        state = self._rebuilt(fitted, old)
        if fitted.encrypted:
            self._shield.widen(*self._covered(state))
            self._doubtful[network.id] = fitted.vnis
        try:
            self._put_router(state, old)
        except SwarmError as error:
            if not getattr(error, "__notes__", ()):
                self._doubtful.pop(network.id, None)
                self._settle()
            raise
        self._networks[network.id] = state
        self._asked[network.id] = network
        self._doubtful.pop(network.id, None)
        self._settle()

    def _put_router(self, state: NetworkState, old: NetworkState | None) -> None:
        name = names.router_name(state.network.id)
        made = self._kernel.make_router(name)
        try:
            wanted = state.objects()
            self._run.apply(name, plan(wanted, self._kernel.observe(name, wanted)))
        except SwarmError as error:
            if old is None and made:
                self._run.undo(error, lambda: self._kernel.drop_router(name))
            elif old is not None:
                kept = old.objects()
                self._run.undo(
                    error,
                    lambda: self._run.apply(name, plan(kept, self._kernel.observe(name, kept))),
                )
            raise

    def remove_network(self, network_id: str) -> None:
        """Remove a network's router; a network that is not there is no error."""
        state = self._networks.get(network_id)
        if state is None:
            if network_id in self._doubtful:
                self._kernel.drop_router(names.router_name(network_id))
                del self._doubtful[network_id]
                self._settle()
            return
        if state.endpoints:
            raise PreconditionError(
                f"network {state.network.name} still has {len(state.endpoints)} endpoints here"
            )
        self._kernel.drop_router(names.router_name(network_id))
        self._run.operations += 1
        del self._networks[network_id], self._asked[network_id]
        self._doubtful.pop(network_id, None)
        self._settle()

    def set_vips(self, network_id: str, vips: Iterable[IPAddress]) -> None:
        """Replace the service addresses the network's router answers for."""
        state = self._state(network_id)
        new = set(vips)
        for ip in new:
            if state.network.subnet_of(ip) is None:
                raise InvalidArgumentError(f"{ip} is in no subnet of {state.network.name}")
        before, after = (
            keyed(
                [
                    *(Route(target=host_route(ip), kind="local") for ip in each),
                    *state.shortcut_objects(each),
                ]
            )
            for each in (state.vips, new)
        )
        name = names.router_name(network_id)
        try:
            self._run.apply(name, plan(after, before))
        except SwarmError as error:
            self._run.undo(error, lambda: self._run.apply(name, plan(before, after)))
            raise
        state.vips = new

    def change_vips(
        self, network_id: str, add: Sequence[IPAddress], drop: Sequence[IPAddress]
    ) -> None:
        """Change the service addresses the network's router answers for."""
        state = self._state(network_id)
        for ip in add:
            if state.network.subnet_of(ip) is None:
                raise InvalidArgumentError(f"{ip} is in no subnet of {state.network.name}")
        new = state.vips.difference(drop).union(add)
        before, after = (
            keyed(
                [
                    *(Route(target=host_route(ip), kind="local") for ip in changed),
                    *state.shortcut_objects(vips),
                ]
            )
            for changed, vips in ((state.vips - new, state.vips), (new - state.vips, new))
        )
        self._run.apply(names.router_name(network_id), plan(after, before))
        state.vips = new

    def within(self, network_id: str, step: Callable[[Nft], T]) -> T:
        """Run a step in a network's router namespace, or in the daemon's own."""
        name = HOME
        if network_id:
            name = names.router_name(self._state(network_id).network.id)
        return self._kernel.within(name, step)

    def _device_mtu(self) -> int | None:
        """Return the MTU of the device under the tunnel; while it cannot be seen, as it was last."""
        self._underlay = self._kernel.underlay_mtu() or self._underlay
        return self._underlay

    def _under(self) -> int | None:
        """Return the MTU under the tunnel: of the device, or less where a path to a node is smaller."""
        device = self._device_mtu()
        if device is None or not self._paths:
            return device
        tunnels = self.tunnels()
        return min([device, *(mtu for peer, mtu in self._paths.items() if peer in tunnels)])

    # --- paths -------------------------------------------------------------------------------

    def tunnels(self) -> frozenset[IPAddress]:
        """Return the tunnel addresses of all nodes with endpoints on our networks."""
        return frozenset().union(*(state.tunnels for state in self._networks.values()))

    def open_chamber(self) -> Chamber | None:
        """Return the place to try paths from."""
        return self._kernel.open_chamber(self.tunnels())

    def set_path(self, peer: IPAddress, mtu: int, *, sums: bool) -> bool:
        """Take what was found on the way to a node; returns whether that was news.

        Args:
            peer: its tunnel address.
            mtu: the largest packet on the underlay that arrives, bytes.
            sums: whether checksums made by the device arrive.
        """
        device = self._device_mtu()
        fits = device is None or mtu >= device
        before = (self._paths.get(peer), self._software)
        if fits:
            self._paths.pop(peer, None)
        else:
            self._paths[peer] = mtu
        if not sums:
            self._software = True
            for state in self._networks.values():
                state.software = True
        return before != (self._paths.get(peer), self._software)

    def _fit(self, network: Network) -> Network:
        under = self._under()
        mtu = network_mtu(network.mtu, under, self._settings.vtep.version, network.encrypted)
        if mtu < network.least_mtu:
            raise HostError(
                f"the underlay's MTU of {under} leaves network {network.name} {mtu} bytes; "
                f"it needs {network.least_mtu}"
            )
        return replace(network, mtu=mtu)

    def _check_network(self, network: Network) -> None:
        if network.encrypted:
            self._shield.require(network)
        if network.l2:
            raise UnimplementedError(
                f"network {network.name} wants layer 2, which this agent cannot do yet"
            )
        vnis = {subnet.vni for subnet in network.subnets} - {None}
        for other in self._networks.values():
            if other.network.id == network.id:
                continue
            if names.router_name(other.network.id) == names.router_name(network.id):
                raise ConflictError(f"networks {other.network.id} and {network.id} share a name")
            taken = vnis & {subnet.vni for subnet in other.network.subnets}
            if taken:
                raise ConflictError(f"VNI {taken.pop()} belongs to network {other.network.name}")

    def _check_routes(self, network: Network) -> None:
        """Refuse a network whose containers could not reach what this host reaches at the same addresses.

        Wider routes by way of a gateway are none of that: only a part of them is hidden, as with
        every network of its own.
        """
        for route in self._kernel.home_routes():
            if route.device == names.MESH_DEVICE:
                continue
            for subnet in network.subnets:
                cidr = subnet.cidr
                if cidr.version != route.target.version or not cidr.overlaps(route.target):
                    continue
                if route.direct or route.target.prefixlen >= cidr.prefixlen:
                    raise ConflictError(
                        f"subnet {cidr} of network {network.name} overlaps {route.target}, which this "
                        f"host reaches by {route.device or 'another way'}: make the network with "
                        "another --subnet, or the swarm with another --default-addr-pool"
                    )

    def _empty(self, network: Network) -> NetworkState:
        return NetworkState(
            network=network,
            settings=self._settings,
            software=self._software,
            shortcuts=self._settings.shortcuts and self._kernel.shortcuts(),
        )

    def _rebuilt(self, network: Network, old: NetworkState | None) -> NetworkState:
        state = self._empty(network)
        if old is None:
            return state
        for endpoint in old.endpoints.values():
            state.check_endpoint(endpoint)
            state.add_endpoint(endpoint)
        for peer in old.peers.values():
            subnet = network.subnet_of(peer.ip)
            if subnet is not None and subnet.cidr.prefixlen == peer.prefixlen:
                state.add_peer(peer)
        state.vips = {ip for ip in old.vips if network.subnet_of(ip) is not None}
        return state

    # --- encryption --------------------------------------------------------------------------

    def set_keys(self, keys: Iterable[IpsecKey], now: float) -> None:
        """Replace the IPsec keys; those withdrawn are listened to for a while.

        Args:
            keys: at most three.
            now: monotonic seconds.
        """
        self._shield.set_keys(tuple(keys), *self._covered(), now)

    def guarding(self) -> bool:
        """Tell whether there is an encrypted network; any thread may ask."""
        return self._guarding

    def encryption(self) -> Encryption:
        """Return what carries the encrypted networks."""
        return self._shield.status()

    def check_shield(self, now: float) -> Check:
        """Compare guards, policies and associations with what is wanted, and set them right."""
        return self._shield.check(*self._covered(), now)

    def _covered(self, *more: NetworkState) -> tuple[frozenset[int], frozenset[IPAddress]]:
        """Return the VNIs to guard and the tunnel addresses to reach, derived from what is held."""
        states = [s for s in (*self._networks.values(), *more) if s.network.encrypted]
        vnis = [state.network.vnis for state in states]
        return (
            frozenset().union(*vnis, *self._doubtful.values()),
            frozenset().union(*(state.tunnels for state in states)),
        )

    def _settle(self) -> None:
        vnis, peers = self._covered()
        self._guarding = bool(vnis)
        # What cannot be taken away only closes more than it must; the call it was for is done,
        # and the next check tries again and reports.
        with contextlib.suppress(SwarmError):
            self._shield.settle(vnis, peers)

    # --- endpoints ---------------------------------------------------------------------------

    def plug(self, endpoint: Endpoint) -> None:
        """Connect a container; nothing of it stays when this fails."""
        state = self._state(endpoint.network_id)
        known = self._homes.get(endpoint.id)
        if known is not None:
            if self._networks[known].endpoints[endpoint.id] == endpoint:
                return
            raise ConflictError(f"endpoint {endpoint.id[:12]} is plugged in differently")
        self._check_free(state, endpoint)
        near = state.around(address.ip for address in endpoint.addresses)
        before = keyed(state.peer_objects(near))
        state.add_endpoint(endpoint)
        after = keyed([*state.peer_objects(near), *state.endpoint_objects(endpoint)])
        name = names.router_name(endpoint.network_id)
        try:
            self._run.apply(name, plan(after, before))
        except SwarmError as error:
            state.discard_endpoint(endpoint.id)
            self._run.undo(error, lambda: self._run.apply(name, plan(before, after)))
            raise
        self._homes[endpoint.id] = endpoint.network_id
        try:
            self._ways.open(state, endpoint)
        except SwarmError as error:
            self._run.undo(error, lambda: self.unplug(endpoint.id))
            raise

    def unplug(self, endpoint_id: str) -> None:
        """Disconnect a container; one that is not there is no error."""
        network_id = self._homes.get(endpoint_id)
        if network_id is None:
            return
        state = self._networks[network_id]
        self._ways.close(endpoint_id)
        endpoint = state.endpoints[endpoint_id]
        near = state.around(address.ip for address in endpoint.addresses)
        before = keyed([*state.peer_objects(near), *state.endpoint_objects(endpoint)])
        state.discard_endpoint(endpoint_id)
        after = keyed(state.peer_objects(near))
        try:
            self._run.apply(names.router_name(network_id), plan(after, before))
        except SwarmError:
            state.add_endpoint(endpoint)  # still there: a second try must find it
            raise
        del self._homes[endpoint_id]

    def _check_free(self, state: NetworkState, endpoint: Endpoint) -> None:
        state.check_endpoint(endpoint)
        for address in endpoint.addresses:
            owner = state.owners.get(address.ip)
            if owner is not None:
                raise ConflictError(
                    f"{address.ip} belongs to container {state.endpoints[owner].container}"
                )
        owner = state.macs.get(endpoint.mac)
        if owner is not None:
            text = f"{endpoint.mac} belongs to container {state.endpoints[owner].container}"
            raise ConflictError(text)
        if names.port_name(endpoint.id) in state.ports:
            raise ConflictError(f"another endpoint's id begins like {endpoint.id}")

    # --- peers -------------------------------------------------------------------------------

    def set_peer(self, peer: Peer) -> None:
        """Put one remote endpoint; a record that names our own VTEP is left out: it is ours."""
        state = self._state(peer.network_id)
        state.check_peer(peer)
        if peer.vtep != self._settings.vtep and state.peers.get(peer.ip) != peer:
            self._change_peers(state, {peer.ip: peer}, ())

    def set_peers(self, network_id: str, peers: Iterable[Peer]) -> tuple[Failure, ...]:
        """Replace all remote endpoints; returns the records left out because they are wrong.

        They are left out and not raised: one bad record must not keep a thousand good ones away.
        """
        state = self._state(network_id)
        fresh: dict[IPAddress, Peer] = {}
        refused: list[Failure] = []
        tunnel, ours = self._settings.vtep, True
        for peer in peers:
            try:
                state.check_peer(peer)
            except InvalidArgumentError as error:
                refused.append(Failure(kind="peer", id=str(peer.ip), text=str(error)))
                continue
            if peer.vtep is not tunnel:
                tunnel, ours = peer.vtep, peer.vtep == self._settings.vtep
            if not ours:
                fresh[peer.ip] = peer
        if not fresh and not state.network.encrypted and (many := state.all_peers()) is not None:
            self._drop_all_peers(state, many)
            return tuple(refused)
        stale = [ip for ip in state.peers if ip not in fresh]
        if state.peers:
            fresh = {ip: peer for ip, peer in fresh.items() if state.peers.get(ip) != peer}
        self._change_peers(state, fresh, stale)
        return tuple(refused)

    def remove_peer(self, network_id: str, ip: IPAddress) -> None:
        """Forget a remote endpoint; one that is not there is no error."""
        self._change_peers(self._state(network_id), {}, (ip,))

    def _change_peers(
        self, state: NetworkState, put: Mapping[IPAddress, Peer], drop: Sequence[IPAddress]
    ) -> None:
        fresh = None if drop or state.network.encrypted else state.newcomers(put)
        if fresh is not None:
            self._add_newcomers(state, put, fresh)
            return
        near = state.around([*put, *drop], put.values())
        tunnels = set(state.tunnels) if state.network.encrypted else None
        before = keyed(state.peer_objects(near))
        old = {ip: state.peers[ip] for ip in near if ip in state.peers}
        for ip in drop:
            state.discard_peer(ip)
        for peer in put.values():
            state.add_peer(peer)
        after = keyed(state.peer_objects(near))
        name = names.router_name(state.network.id)
        moved = tunnels is not None and tunnels != state.tunnels.keys()
        try:
            if moved:
                self._shield.widen(*self._covered())
            self._run.apply(name, plan(after, before))
        except SwarmError as error:
            for ip in near:
                state.discard_peer(ip)
            for peer in old.values():
                state.add_peer(peer)
            self._run.undo(error, lambda: self._run.apply(name, plan(before, after)))
            if moved:
                self._settle()
            raise
        if moved:
            self._settle()

    def _add_newcomers(
        self, state: NetworkState, put: Mapping[IPAddress, Peer], many: tuple[Remotes, ...]
    ) -> None:
        name = names.router_name(state.network.id)
        try:
            self._run.apply(name, tuple(Put(each) for each in many))
        except SwarmError as error:
            back = tuple(Drop(each) for each in many)
            self._run.undo(error, lambda: self._run.apply(name, back))
            raise
        state.add_newcomers(put, many)

    def _drop_all_peers(self, state: NetworkState, many: tuple[Remotes, ...]) -> None:
        name = names.router_name(state.network.id)
        try:
            self._run.apply(name, tuple(Drop(each) for each in many))
        except SwarmError as error:
            back = tuple(Put(each) for each in many)
            self._run.undo(error, lambda: self._run.apply(name, back))
            raise
        state.forget_peers()

    # --- the whole ---------------------------------------------------------------------------

    def reconcile(self, wanted: Wanted) -> Report:
        """Bring the whole node into the wanted state, touching nothing that is right already."""
        start = self._run.operations
        failed: list[Failure] = []
        self._networks.clear()
        self._asked.clear()
        self._homes.clear()
        refused = self._cover_all(wanted.networks, failed)
        keep = {names.router_name(network.id) for network in wanted.networks}
        removed = tuple(name for name in self._kernel.routers() if name not in keep)
        for name in removed:
            self._kernel.drop_router(name)
            self._run.operations += 1
        self._ways.recall()
        adopted: list[str] = []
        attached: list[str] = []
        gone: list[str] = []
        for network in wanted.networks:
            if network.id in refused:
                continue
            try:
                state = self._wanted_state(network, wanted, failed)
                self._asked[network.id] = network
                if network.encrypted:
                    self._shield.widen(*self._covered(state))
                absent = self._adopt(state, failed)
                self._doubtful.pop(network.id, None)
            except SwarmError as error:
                failed.append(Failure(kind="network", id=network.id, text=str(error)))
                continue
            adopted += state.endpoints
            for endpoint in absent:
                if not self._kernel.reachable(endpoint.netns):
                    gone.append(endpoint.id)
                    continue
                try:
                    self.plug(endpoint)
                    attached.append(endpoint.id)
                except SwarmError as error:
                    failed.append(Failure(kind="endpoint", id=endpoint.id, text=str(error)))
        failed += self._ways.restore(self._networks.values())
        self._settle()
        failed += [
            Failure(
                kind="endpoint",
                id=endpoint.id,
                text=f"network {endpoint.network_id} is not on this node",
            )
            for endpoint in wanted.endpoints
            if endpoint.network_id not in self._networks
        ]
        return Report(
            adopted=tuple(adopted),
            attached=tuple(attached),
            gone=tuple(gone),
            removed=removed,
            failed=tuple(failed),
            operations=self._run.operations - start,
        )

    def _cover_all(self, networks: Iterable[Network], failed: list[Failure]) -> set[str]:
        """Put the guards of all encrypted networks before anything else is touched.

        Returns the networks that cannot have them. What an earlier agent has left of those goes:
        nobody knows what it would send.
        """
        encrypted = [network for network in networks if network.encrypted]
        self._doubtful = {network.id: network.vnis for network in encrypted}
        self._shield.take_over()
        try:
            for network in encrypted:
                self._shield.require(network)
            if encrypted:
                self._shield.widen(*self._covered())
        except SwarmError as error:
            for network in encrypted:
                failed.append(Failure(kind="network", id=network.id, text=str(error)))
                self._kernel.drop_router(names.router_name(network.id))
            self._doubtful.clear()
            return {network.id for network in encrypted}
        return set()

    def _wanted_state(
        self, network: Network, wanted: Wanted, failed: list[Failure]
    ) -> NetworkState:
        network = self._fit(network)
        self._check_network(network)
        state = self._empty(network)
        for endpoint in wanted.endpoints:
            if endpoint.network_id != network.id:
                continue
            try:
                self._check_free(state, endpoint)
                state.add_endpoint(endpoint)
            except SwarmError as error:
                failed.append(Failure(kind="endpoint", id=endpoint.id, text=str(error)))
        for peer in wanted.peers:
            if peer.network_id != network.id or peer.vtep == self._settings.vtep:
                continue
            try:
                state.check_peer(peer)
                state.add_peer(peer)
            except SwarmError as error:
                failed.append(Failure(kind="peer", id=str(peer.ip), text=str(error)))
        vips = (ip for network_id, ip in wanted.vips if network_id == network.id)
        state.vips = {ip for ip in vips if network.subnet_of(ip) is not None}
        return state

    def _adopt(self, state: NetworkState, failed: list[Failure]) -> list[Endpoint]:
        """Set a router right with the endpoints it has; returns those it does not have."""
        name = names.router_name(state.network.id)
        self._kernel.make_router(name)
        observed = self._kernel.observe(name, state.objects())
        absent = self._take_absent(state, observed)
        texts = self._run.repair(name, plan(state.objects(), observed))
        failed += [Failure(kind="network", id=state.network.id, text=text) for text in texts]
        self._networks[state.network.id] = state
        self._homes.update(dict.fromkeys(state.endpoints, state.network.id))
        return absent

    @staticmethod
    def _take_absent(state: NetworkState, observed: State) -> list[Endpoint]:
        ports = {item.endpoint_id for item in observed.values() if isinstance(item, Port)}
        absent = [endpoint for endpoint in state.endpoints.values() if endpoint.id not in ports]
        for endpoint in absent:
            state.discard_endpoint(endpoint.id)
        return absent

    def check_router(self, network_id: str) -> Check:
        """Compare one router with what is wanted of it, and set it right."""
        state = self._networks.get(network_id)
        if state is None:
            return Check()
        if self._fit(self._asked[network_id]) != state.network:
            self.put_network(self._asked[network_id])  # the underlay's MTU is another now
            state = self._networks[network_id]
        name = names.router_name(network_id)
        made = self._kernel.make_router(name)
        wanted = _without_insides(state.objects())
        observed = self._kernel.observe(name, wanted)
        absent = self._take_absent(state, observed)
        if absent:
            wanted = _without_insides(state.objects())
        ops = plan(wanted, observed)
        failures = self._run.repair(name, ops)
        gone: list[str] = []
        for endpoint in absent:
            del self._homes[endpoint.id]
            if not self._kernel.reachable(endpoint.netns):
                gone.append(endpoint.id)
                continue
            try:
                self.plug(endpoint)
            except SwarmError as error:
                failures.append(str(error))
                state.add_endpoint(endpoint)  # wanted still: the next check tries again
                self._homes[endpoint.id] = network_id
        if not failures and self._doubtful.pop(network_id, None) is not None:
            self._settle()
        drift = len(ops) + len(absent) + int(made)
        return Check(drift=drift, gone=tuple(gone), failures=tuple(failures))

    def check_insides(self, network_id: str, endpoint_ids: Iterable[str]) -> Check:
        """Compare containers' ends with what is wanted of them, and set them right."""
        state = self._networks.get(network_id)
        if state is None:
            return Check()
        wanted = keyed(
            item
            for endpoint_id in endpoint_ids
            if endpoint_id in state.endpoints
            for item in state.endpoint_objects(state.endpoints[endpoint_id])
            if isinstance(item, Inside)
        )
        name = names.router_name(network_id)
        ops = plan(wanted, self._kernel.observe_insides(name, wanted))
        return Check(drift=len(ops), failures=tuple(self._run.repair(name, ops)))

    def check_exits(self) -> Check:
        """Compare the ways out with what is wanted of them, and set them right."""
        return self._ways.check(self._homes)

    def exit_addresses(self, endpoint_id: str) -> tuple[IPAddress, ...]:
        """Return the addresses of an endpoint's leg to the outside."""
        return self._ways.exits.addresses(endpoint_id)

    def endpoints_of(self, network_id: str) -> tuple[str, ...]:
        """Return the ids of a network's local endpoints."""
        state = self._networks.get(network_id)
        return tuple(state.endpoints) if state else ()

    def destroy(self) -> None:
        """Remove everything of ours on this host, known or not."""
        for name in self._kernel.routers():
            self._kernel.drop_router(name)
            self._run.operations += 1
        self._ways.destroy()
        self._shield.destroy()
        self._doubtful.clear()
        self._kernel.close_chamber()
        self._kernel.close_store()
        self._networks.clear()
        self._asked.clear()
        self._homes.clear()


def _without_insides(objects: State) -> dict[Key, Object]:
    return {key: item for key, item in objects.items() if not isinstance(item, Inside)}
