"""Ways out as plans, in both IP versions; each plan twice is nothing."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from agent.dataplane import exits, forwarding
from agent.dataplane.engine import Engine
from agent.dataplane.exits import HOME, Exits
from agent.dataplane.model import Settings, Wanted
from agent.dataplane.names import ROUTER_LINK_LOCAL
from agent.dataplane.objects import Address, ExitTable, Inside, Neighbour, Put, Route, Sysctl
from agent.dataplane.planner import plan
from swarm.errors import ExhaustedError, InvalidArgumentError

SWITCH = {version: ("sysctl", path) for version, path in forwarding.PATHS.items()}


def only(objects: Any, kind: type) -> Any:
    (found,) = (item for item in objects.values() if isinstance(item, kind))
    return found


@pytest.mark.parametrize("v6", [False, True])
def test_a_leg_has_the_ip_versions_of_the_endpoint(make: Any, settings: Settings, v6: bool) -> None:
    """Address, default route, neighbour and host route in each, by one path."""
    ways = Exits(settings=settings)
    endpoint = make.endpoint(1, 2, v6=v6, out=True)
    ways.add(endpoint)
    found = ways.objects()
    own = [ipaddress.ip_address("172.30.0.2"), ipaddress.ip_address("fd6f:7673:7761:726d::2")]
    hops = [ipaddress.ip_address("172.30.0.1"), ROUTER_LINK_LOCAL.ip]
    count = 2 if v6 else 1
    assert ways.addresses(endpoint.id) == tuple(own[:count])
    inside = only(found, Inside)
    assert inside.v6 is v6
    assert {address.ip for address in inside.addresses} == set(own[:count])
    defaults = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
    assert inside.routes == frozenset(zip(defaults[:count], hops, strict=False))
    for kind in (Address, Neighbour, Route):
        assert sum(isinstance(item, kind) for item in found.values()) == count
    assert {version for version, key in SWITCH.items() if key in found} == set((4, 6)[:count])
    off = found["sysctl", f"net/ipv6/conf/{inside.ifname}/disable_ipv6"]
    assert isinstance(off, Sysctl)
    assert off.value == ("0" if v6 else "1")
    assert plan(found, found) == ()


def test_the_table_stands_before_the_host_forwards(make: Any, settings: Settings) -> None:
    """It remembers what the host did before, and lets nothing else through."""
    ways = Exits(settings=settings)
    ways.add(make.endpoint(1, 2, v6=True, out=True))
    order = [type(op.object) for op in plan(ways.objects(), {}) if isinstance(op, Put)]
    assert order.index(ExitTable) < order.index(Sysctl)


@pytest.mark.parametrize("closed", [(), (4,), (6,), (4, 6)])
def test_what_a_host_did_not_forward_is_remembered_in_the_table(
    settings: Settings, closed: tuple[int, ...]
) -> None:
    """By the name of a chain; and only those IP versions are shut for others."""
    table = exits.wanted_table(settings, closed=frozenset(closed))
    text = exits.build(settings, table)
    chains = [line.split()[4] for line in text.split("\n") if line.startswith("add chain")]
    assert exits.closed_by(chains) == frozenset(closed)
    rules = [line.split()[4] for line in text.split("\n") if line.startswith("add rule")]
    listing: Any = [{"chain": {"name": name}} for name in chains]
    listing += [{"rule": {"chain": name}} for name in rules]
    assert exits.observed(settings, listing) == table
    for version in (4, 6):
        assert (f"exit-forward meta nfproto ipv{version} drop" in text) is (version in closed)


def test_ipv6_begins_with_the_first_endpoint_that_has_it(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """A host that forwards neither is told of each when it is needed, and all goes with the last."""
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1, v6=True))
    engine.plug(make.endpoint(1, 2, out=True))
    assert SWITCH[6] not in kernel.home
    assert only(kernel.home, ExitTable).closed == {4}
    engine.plug(make.endpoint(1, 3, v6=True, out=True))
    assert SWITCH[6] in kernel.home
    assert only(kernel.home, ExitTable).closed == {4, 6}
    assert engine.check_exits().drift == 0
    again = Engine(settings, kernel)
    (state,) = engine._networks.values()
    report = again.reconcile(
        Wanted(networks=(state.network,), endpoints=tuple(state.endpoints.values()))
    )
    assert (report.operations, report.failed) == (0, ())
    engine.unplug(make.endpoint(1, 3, v6=True).id)
    wanted = engine._ways.exits.objects()
    assert plan(wanted, kernel.observe(HOME, wanted)) == ()
    engine.unplug(make.endpoint(1, 2).id)
    assert kernel.home == {}


def test_an_internal_network_has_no_way_out_in_either(
    make: Any, settings: Settings, kernel: Any
) -> None:
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1, v6=True, internal=True))
    endpoint = make.endpoint(1, 2, v6=True, out=True)
    engine.plug(endpoint)
    assert kernel.home == {}
    assert engine.exit_addresses(endpoint.id) == ()


def test_both_ranges_end_together(make: Any, settings: Settings) -> None:
    """The last number is not handed out: in IPv4 it is the broadcast address."""
    ways = Exits(settings=settings)
    ways.numbers = {f"other{number}": number for number in range(2, 65534)}
    ways.add(make.endpoint(1, 2, v6=True, out=True))
    assert [str(ip) for ip in ways.addresses(make.endpoint(1, 2).id)] == [
        "172.30.255.254",
        "fd6f:7673:7761:726d::fffe",
    ]
    with pytest.raises(ExhaustedError):
        ways.add(make.endpoint(1, 3, v6=True, out=True))
    with pytest.raises(InvalidArgumentError):
        Settings(
            vtep=settings.vtep,
            run_dir=settings.run_dir,
            exit_pool6=ipaddress.IPv6Network("fd00::/120"),
        )
