"""The engine over an interpreter of the kernel: whatever happens, the kernel holds what is wanted."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent.dataplane.engine import Engine
from agent.dataplane.executor import HomeRoute
from agent.dataplane.model import Settings, Wanted
from agent.dataplane.objects import Fdb, Inside, Port, Route, Sysctl, Vxlan
from agent.dataplane.planner import NetworkState, plan
from swarm.errors import (
    ConflictError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
    UnimplementedError,
)


def agree(engine: Engine, kernel: Any) -> None:
    """Assert that each router holds exactly what is wanted, and that a second plan is empty."""
    assert {state.network.id[:12] for state in engine._networks.values()} == set(kernel.held)
    for network_id, state in engine._networks.items():
        held = kernel.held[network_id[:12]]
        wanted = state.objects()
        judged = {k: v for k, v in held.items() if k in wanted or not isinstance(v, Sysctl)}
        assert judged == wanted
        assert plan(wanted, held) == ()
    assert kernel.home == engine._ways.exits.objects()
    wanted = engine._shield.wanted(*engine._covered())
    if kernel.shield != wanted:  # a removal failed: that closes more than it must
        assert kernel.shield.keys() > wanted.keys()
        assert engine.check_shield(0).failures == ()
        assert kernel.shield == wanted
    places = [*kernel.held.values(), kernel.home]
    ports = sum(isinstance(v, Port) for held in places for v in held.values())
    assert ports == sum(len(names) for names in kernel.boxes.values())


NUMBERS = st.integers(2, 6)
NETS = st.integers(1, 2)
STEPS = st.one_of(
    st.tuples(
        st.just("put_network"), NETS, st.booleans(), st.sampled_from([0, 1300, 9000]), st.booleans()
    ),
    st.tuples(st.just("set_keys"), st.sets(st.integers(1, 6), max_size=3), st.integers(0, 200)),
    st.tuples(st.just("check_shield"), st.integers(0, 200)),
    st.tuples(st.just("remove_network"), NETS),
    st.tuples(st.just("plug"), NETS, NUMBERS, st.booleans()),
    st.tuples(st.just("unplug"), NETS, NUMBERS),
    st.tuples(st.just("set_peer"), NETS, NUMBERS, st.integers(1, 3), st.integers(2, 4)),
    st.tuples(st.just("remove_peer"), NETS, NUMBERS),
    st.tuples(st.just("set_peers"), NETS, st.lists(st.tuples(NUMBERS, st.integers(1, 3)))),
    st.tuples(st.just("set_vips"), NETS, st.sets(NUMBERS)),
    st.tuples(st.just("fail_after"), st.integers(0, 30)),
    st.tuples(st.just("mtu"), st.sampled_from([None, 1400, 1500, 9000])),
    st.tuples(st.just("end_box"), NUMBERS),
)


def perform(make: Any, engine: Engine, kernel: Any, step: tuple[Any, ...]) -> None:
    """Do one step of a history."""
    net = f"network{step[1]}xxxxxxxx"
    match step:
        case ("put_network", number, extra, mtu, encrypted):
            engine.put_network(
                make.network(number, v6=True, extra=extra, mtu=mtu, encrypted=encrypted)
            )
        case ("set_keys", numbers, now):
            engine.set_keys([make.key(number) for number in numbers], now)
        case ("check_shield", now):
            engine.check_shield(now)
        case ("remove_network", _):
            engine.remove_network(net)
        case ("plug", number, endpoint, v6):
            engine.plug(make.endpoint(number, endpoint, v6=v6, out=endpoint % 2 == 0))
        case ("unplug", number, endpoint):
            engine.unplug(make.endpoint(number, endpoint).id)
        case ("set_peer", number, peer, vtep, mac):
            engine.set_peer(make.peer(number, peer, vtep=vtep, mac=mac))
        case ("remove_peer", number, peer):
            engine.remove_peer(net, make.peer(number, peer).ip)
        case ("set_peers", number, peers):
            records = [make.peer(number, peer, vtep=vtep) for peer, vtep in peers]
            engine.set_peers(net, records)
        case ("set_vips", number, vips):
            engine.set_vips(
                net, [ipaddress.ip_address(f"10.0.{number}.{vip + 100}") for vip in vips]
            )
        case ("fail_after", count):
            kernel.fail_after = count
        case ("mtu", mtu):
            kernel.mtu = mtu
        case ("end_box", number):
            if f"/box/{number}" in kernel.boxes:
                kernel.end_box(f"/box/{number}")
            for network_id in engine.networks():
                engine.check_router(network_id)
                engine.check_insides(network_id, engine.endpoints_of(network_id))
            engine.check_exits()


@given(steps=st.lists(STEPS, max_size=30))
@hypothesis_settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.slow
def test_any_history_leaves_the_kernel_as_wanted(
    make: Any, settings: Settings, steps: list[tuple[Any, ...]]
) -> None:
    """Also when an operation fails at any point: then the call raises and changes nothing."""
    kernel = make.kernel()
    kernel.boxes = {f"/box/{number}": set() for number in range(2, 10)}
    engine = Engine(settings, kernel)
    for step in steps:
        try:
            perform(make, engine, kernel, step)
        except SwarmError as error:
            # Taking back failed as well: it says so, and the next check has to set it right.
            if getattr(error, "__notes__", ()):
                kernel.fail_after = None
                engine.check_shield(0)
                for network_id in engine.networks():
                    engine.check_router(network_id)
                    engine.check_insides(network_id, engine.endpoints_of(network_id))
                engine.check_exits()
        if kernel.fail_after is None or step[0] == "fail_after":
            agree(engine, kernel)
    kernel.fail_after = None
    # A daemon that starts anew, told the same, has nothing to do.
    wanted = wanted_of(engine)
    for state in engine._networks.values():
        if engine._fit(engine._asked[state.network.id]) != state.network:
            return  # the underlay changed since: something is to do
    if kernel.mtu is None or (
        engine._ways.exits.endpoints and engine._ways.exits.mtu != kernel.mtu
    ):
        return
    heir = Engine(settings, kernel)
    if engine._shield._ring is not None:
        engine.check_shield(1000)  # the grace of withdrawn keys is over
        heir.set_keys(engine._shield._ring.live, 0)
    report = heir.reconcile(wanted)
    assert report.operations == 0
    assert report.failed == ()
    agree(heir, kernel)
    heir.destroy()
    assert kernel.held == kernel.home == kernel.shield == {}


ROUTES = [
    ("10.0.1.0/24", "eth0", True, True),
    ("10.0.0.0/16", "eth0", True, True),
    ("10.0.1.128/25", "tun0", False, True),
    ("10.0.1.0/24", "", False, True),
    ("fd00:1::/48", "eth0", True, True),
    ("10.0.0.0/8", "eth0", False, False),
    ("10.0.2.0/24", "eth0", True, False),
    ("10.0.1.0/24", "ovmesh0", True, False),
    ("fd00:2::/64", "eth0", True, False),
]


@pytest.mark.parametrize(("target", "device", "direct", "refused"), ROUTES)
def test_a_subnet_that_the_host_reaches_elsewhere_is_refused_before_use(
    make: Any, settings: Settings, target: str, device: str, direct: bool, refused: bool
) -> None:
    """Nothing is made then; a router that is there already stays, for its containers run."""
    kernel = make.kernel()
    engine = Engine(settings, kernel)
    network = make.network(1, v6=True)
    kernel.routes = (HomeRoute(ipaddress.ip_network(target), device, direct),)
    if refused:
        with pytest.raises(ConflictError, match=f"n1 overlaps {target}.*another --subnet"):
            engine.put_network(network)
        assert kernel.held == {}
        assert engine.networks() == ()
    else:
        engine.put_network(network)
    kernel.routes = ()
    engine.put_network(network)
    kernel.routes = (HomeRoute(ipaddress.ip_network(target), device, direct),)
    engine.put_network(replace(network, mtu=1300))
    heir = Engine(settings, kernel)
    assert heir.reconcile(wanted_of(engine)).failed == ()


class DiedError(BaseException):
    """The process is gone: nothing handles it."""


CHANGES = STEPS.filter(lambda step: step[0] not in {"fail_after", "mtu", "end_box", "check_shield"})


@given(steps=st.lists(CHANGES, max_size=12), last=CHANGES, lives=st.integers(0, 40))
@hypothesis_settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.slow
def test_dying_at_any_point_of_any_plan_is_mended_by_the_next_agent(
    make: Any, settings: Settings, steps: list[tuple[Any, ...]], last: tuple[Any, ...], lives: int
) -> None:
    """Told what was wanted before, or what was wanted after: the kernel gets there, and stays."""
    kernel, twin = make.kernel(), make.kernel()
    engines = []
    for one in (kernel, twin):
        one.boxes = {f"/box/{number}": set() for number in range(2, 10)}
        engine = Engine(settings, one)
        engines.append(engine)
        for step in steps:
            with contextlib.suppress(SwarmError):
                perform(make, engine, one, step)
    engine, complete = engines
    before = wanted_of(engine)
    with contextlib.suppress(SwarmError):
        perform(make, complete, twin, last)
    left = [lives]

    def point(_: str, __: Any) -> None:
        if left[0] == 0:
            raise DiedError
        left[0] -= 1

    engine._run.before = point
    with contextlib.suppress(SwarmError, DiedError):
        perform(make, engine, kernel, last)
    for wanted, ring in (
        (before, engine._shield._ring),
        (wanted_of(complete), complete._shield._ring),
    ):
        heir = Engine(settings, kernel)
        if ring is not None:
            heir.set_keys(ring.live, 0)
        assert heir.reconcile(wanted).failed == ()
        agree(heir, kernel)
        assert heir.reconcile(wanted).operations == 0
        agree(heir, kernel)


def wanted_of(engine: Engine) -> Wanted:
    """What a daemon that starts anew would be told."""
    states = list(engine._networks.values())
    return Wanted(
        networks=tuple(engine._asked[state.network.id] for state in states),
        endpoints=tuple(e for state in states for e in state.endpoints.values()),
        peers=tuple(p for state in states for p in state.peers.values()),
        vips=tuple((state.network.id, vip) for state in states for vip in state.vips),
    )


@given(data=st.data())
@hypothesis_settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.slow
def test_any_damage_is_repaired_by_one_check(
    make: Any, settings: Settings, data: st.DataObject
) -> None:
    """Objects removed or changed behind our back come back; containers that run stay plugged."""
    kernel = make.kernel()
    kernel.boxes = {f"/box/{number}": set() for number in range(2, 10)}
    engine = Engine(settings, kernel)
    network = make.network(1, v6=True, extra=True)
    engine.put_network(network)
    for number in (2, 3, 4):
        engine.plug(make.endpoint(1, number, v6=True))
    engine.set_peers(network.id, [make.peer(1, n) for n in (20, 21)])
    held = kernel.held[network.id[:12]]
    victims = data.draw(st.lists(st.sampled_from(sorted(held, key=repr)), unique=True, min_size=1))
    for key in victims:
        item = held.get(key)
        if isinstance(item, Vxlan | Port):
            kernel._drop_link(held, item)
        elif item is not None:
            del held[key]
    held.pop(("label", "nothing"), None)
    for port in [item for item in held.values() if isinstance(item, Port)]:
        if ("label", port.name) not in held:
            held[port.key] = replace(port, endpoint_id="")  # the alias is the label
    first = engine.check_router(network.id)
    second = engine.check_insides(network.id, engine.endpoints_of(network.id))
    assert first.drift + second.drift > 0
    assert first.failures == second.failures == ()
    assert first.gone == ()
    agree(engine, kernel)
    assert engine.check_router(network.id).drift == 0
    assert engine.check_insides(network.id, engine.endpoints_of(network.id)).drift == 0


def test_one_entry_serves_peers_that_share_a_mac(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """Removing one of them must not black-hole the other (Docker before 29 does that)."""
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1))
    net = make.network(1).id
    engine.set_peers(net, [make.peer(1, n, mac=9) for n in (20, 21)])
    fdb = ("fdb", "vx-001002", "02:42:0a:00:01:09")
    assert fdb in kernel.held[net[:12]]
    engine.remove_peer(net, make.peer(1, 20).ip)
    assert fdb in kernel.held[net[:12]]
    engine.remove_peer(net, make.peer(1, 21).ip)
    assert fdb not in kernel.held[net[:12]]


def test_our_own_records_are_not_peers(make: Any, settings: Settings, kernel: Any) -> None:
    """A record that names our VTEP makes no forwarding entry to ourselves."""
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1))
    engine.set_peer(make.peer(1, 20, vtep=1))
    assert engine.set_peers(make.network(1).id, [make.peer(1, 20, vtep=1)]) == ()
    assert engine.stats().peers == 0
    assert not any(isinstance(item, Fdb) for item in kernel.held["network1xxxx"].values())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prefixlen": 16}, InvalidArgumentError),
        ({"ip": ipaddress.ip_address("10.9.9.9")}, InvalidArgumentError),
        ({"vtep": ipaddress.ip_address("2001:db8::1")}, InvalidArgumentError),
        ({"vtep": ipaddress.ip_address("224.0.0.1")}, InvalidArgumentError),
        ({"vtep": ipaddress.ip_address("0.0.0.0")}, InvalidArgumentError),
        ({"vtep": ipaddress.ip_address("127.0.0.1")}, InvalidArgumentError),
        ({"ip": ipaddress.ip_address("10.0.1.1")}, InvalidArgumentError),
        ({"ip": ipaddress.ip_address("10.0.1.0")}, InvalidArgumentError),
        ({"ip": ipaddress.ip_address("10.0.1.255")}, InvalidArgumentError),
        ({"network_id": "other"}, NotFoundError),
    ],
)
def test_a_peer_record_that_cannot_be_right_is_refused(
    make: Any, settings: Settings, kernel: Any, change: dict[str, Any], error: type[Exception]
) -> None:
    """Gossip comes from others; a bad record changes nothing."""
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1))
    applied = kernel.applied
    bad = replace(make.peer(1, 20), **change)
    with pytest.raises(error):
        engine.set_peer(bad)
    assert kernel.applied == applied
    # In a batch it is left out: it must not keep the others away.
    refused = engine.set_peers(make.network(1).id, [make.peer(1, 21), bad])
    assert [failure.id for failure in refused] == [str(bad.ip)]
    assert engine.stats().peers == 1
    agree(engine, kernel)


def test_the_local_endpoint_wins_over_a_record_with_its_address(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """And the record takes over when the endpoint leaves."""
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1))
    net = make.network(1).id
    engine.set_peers(net, [make.peer(1, 2)])
    key = Route(target=ipaddress.ip_network("10.0.1.2/32"), kind="unicast").key
    engine.plug(make.endpoint(1, 2))
    assert kernel.held[net[:12]][key].ifname.startswith("ep")
    engine.set_peers(net, [make.peer(1, 2, vtep=3)])
    assert kernel.held[net[:12]][key].ifname.startswith("ep")
    engine.unplug(make.endpoint(1, 2).id)
    assert kernel.held[net[:12]][key].ifname == "vx-001002"
    agree(engine, kernel)


def test_an_address_has_one_container_one_way_out(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """Legs get the lowest free address; a container has at most one."""
    engine = Engine(settings, kernel)
    for number in (1, 2):
        engine.put_network(make.network(number))
    engine.plug(make.endpoint(1, 2, out=True))
    engine.plug(make.endpoint(1, 3, out=True))
    exits = engine._ways.exits
    addresses = sorted(str(*exits.addresses(endpoint_id)) for endpoint_id in exits.endpoints)
    assert addresses == ["172.30.0.2", "172.30.0.3"]
    with pytest.raises(ConflictError):
        engine.plug(make.endpoint(2, 2, out=True))
    engine.plug(make.endpoint(2, 2))
    engine.unplug(make.endpoint(1, 2).id)
    engine.plug(make.endpoint(1, 4, out=True))
    assert str(*exits.addresses(make.endpoint(1, 4).id)) == "172.30.0.2"
    agree(engine, kernel)


def test_an_underlay_too_small_is_named(make: Any, settings: Settings, kernel: Any) -> None:
    """IPv6 needs 1280 bytes; a network that has less is refused and not broken in silence."""
    kernel.mtu = 1300
    engine = Engine(settings, kernel)
    with pytest.raises(HostError, match="1300"):
        engine.put_network(make.network(1, v6=True))
    engine.put_network(make.network(1))
    assert engine.path_mtu(encrypted=False) == 1250
    kernel.mtu = None  # its address is gone for a moment: nothing changes
    assert engine.check_router(make.network(1).id).drift == 0
    assert engine.path_mtu(encrypted=False) == 1250


def test_networks_do_not_share_vnis_or_names(make: Any, settings: Settings, kernel: Any) -> None:
    """Ids that agree in their first 12 characters name one router, so the second is refused."""
    engine = Engine(settings, kernel)
    one = make.network(1)
    engine.put_network(one)
    with pytest.raises(ConflictError):
        engine.put_network(replace(make.network(2), subnets=one.subnets))
    with pytest.raises(ConflictError):
        engine.put_network(replace(make.network(2), id=one.id[:12] + "yyy"))
    with pytest.raises(UnimplementedError):
        engine.put_network(replace(make.network(2), l2=True))
    assert set(kernel.held) == {one.id[:12]}


def test_a_network_in_use_is_not_removed(make: Any, settings: Settings, kernel: Any) -> None:
    """Nor may it lose the subnet of an endpoint."""
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1, v6=True))
    engine.plug(make.endpoint(1, 2, v6=True))
    with pytest.raises(PreconditionError):
        engine.remove_network(make.network(1).id)
    with pytest.raises(InvalidArgumentError):
        engine.put_network(make.network(1))
    agree(engine, kernel)


def test_reconcile_reports_what_it_cannot_do(make: Any, settings: Settings, kernel: Any) -> None:
    """One bad object does not keep the others from their wanted state."""
    kernel.lacks = "no ESP"
    kernel.boxes["/box/3"].add("eth1")
    bad = replace(make.network(2), encrypted=True)
    report = Engine(settings, kernel).reconcile(
        Wanted(
            networks=(make.network(1), bad),
            endpoints=(
                make.endpoint(1, 2),
                make.endpoint(1, 3),
                replace(make.endpoint(1, 4), mac=make.endpoint(1, 2).mac),
                make.endpoint(2, 5),
                make.endpoint(1, 99),
            ),
            peers=(make.peer(1, 20), replace(make.peer(1, 21), prefixlen=8)),
        )
    )
    assert report.attached == (make.endpoint(1, 2).id,)
    assert report.gone == (make.endpoint(1, 99).id,)
    assert {(failure.kind, failure.id) for failure in report.failed} == {
        ("network", bad.id),
        ("endpoint", make.endpoint(1, 3).id),
        ("endpoint", make.endpoint(1, 4).id),
        ("endpoint", make.endpoint(2, 5).id),
        ("peer", "10.0.1.21"),
    }


def test_an_endpoint_replaces_nothing_before_its_route_points_to_it(
    make: Any, settings: Settings
) -> None:
    """A route that moves is replaced in place: there is no moment without one."""
    state = NetworkState(network=replace(make.network(1), mtu=1450), settings=settings)
    state.add_peer(make.peer(1, 2))
    before = state.objects()
    state.add_endpoint(make.endpoint(1, 2))
    after = state.objects()
    routes = [op for op in plan(after, before) if isinstance(op.object, Route)]
    assert [type(op).__name__ for op in routes] == ["Put"]


def test_a_user_may_add_to_the_inside(make: Any, settings: Settings) -> None:
    """Addresses and routes beyond ours are no drift."""
    state = NetworkState(network=replace(make.network(1), mtu=1450), settings=settings)
    state.add_endpoint(make.endpoint(1, 2))
    wanted = state.objects()
    observed = {
        key: replace(item, addresses=item.addresses | {ipaddress.ip_interface("1.2.3.4/32")})
        if isinstance(item, Inside)
        else item
        for key, item in wanted.items()
    }
    assert plan(wanted, observed) == ()
    assert plan(observed, wanted) != ()


@pytest.mark.parametrize("shared", [False, True])
def test_all_remote_endpoints_go_at_once_or_none(
    make: Any, settings: Settings, kernel: Any, shared: bool
) -> None:
    """Also when two share a MAC; when the kernel refuses, all are back; what was bad is named."""
    engine = Engine(settings, kernel)
    network = make.network(1, v6=True, extra=True)
    engine.put_network(network)
    engine.plug(make.endpoint(1, 2))
    peers = [make.peer(1, n, vtep=2 + n % 2, mac=9 if shared else None) for n in range(20, 30)]
    wrong = replace(make.peer(1, 40), ip=ipaddress.ip_address("10.0.1.255"))
    assert [each.id for each in engine.set_peers(network.id, [*peers, wrong])] == ["10.0.1.255"]
    agree(engine, kernel)
    assert engine.tunnels() == {ipaddress.ip_address(f"192.0.2.{n}") for n in (2, 3)}
    kernel.fail_after = 0
    with pytest.raises(HostError):
        engine.set_peers(network.id, [])
    agree(engine, kernel)
    assert engine.stats().peers == 10
    engine.set_peers(network.id, [])
    agree(engine, kernel)
    assert engine.tunnels() == frozenset()
    kernel.fail_after = 0
    with pytest.raises(HostError):
        engine.set_peers(network.id, peers)
    agree(engine, kernel)
    assert engine.stats().peers == 0
