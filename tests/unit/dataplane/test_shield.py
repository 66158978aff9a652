"""Encrypted networks over the interpreter of the kernel: closed in every order of events."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from agent.dataplane import crypto, monitor, xfrm
from agent.dataplane.engine import Engine
from agent.dataplane.model import Settings, Wanted
from agent.dataplane.objects import Association, Cover, Drop, Policy, Put, Vxlan
from swarm.errors import HostError


def secret(make: Any, number: int = 1) -> Any:
    """Return an encrypted network."""
    return make.network(number, encrypted=True)


def keys(make: Any, *numbers: int) -> list[Any]:
    """Return IPsec keys."""
    return [make.key(number) for number in numbers]


def associations(kernel: Any) -> list[Association]:
    """Return what the fake kernel holds."""
    return [item for item in kernel.shield.values() if isinstance(item, Association)]


def record(kernel: Any) -> list[Any]:
    """Keep every operation on any place from now on."""
    seen: list[Any] = []
    apply = kernel.apply

    def recording(name: str, ops: Any) -> None:
        seen.extend(ops)
        apply(name, ops)

    kernel.apply = recording
    return seen


def test_the_guards_are_first_and_last(make: Any, settings: Settings, kernel: Any) -> None:
    """Guards, VNI and block before the device; after it is gone, in reverse."""
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    seen = record(kernel)
    engine.put_network(secret(make))
    order = [type(op.object).__name__ for op in seen]
    assert order[:3] == ["Guards", "Cover", "Policy"]
    assert "Vxlan" in order[3:]
    engine.set_peer(make.peer(1, 20))
    assert len(associations(kernel)) == 7
    seen.clear()
    engine.remove_network(secret(make).id)
    kinds = [type(op.object).__name__ for op in seen]
    assert kinds == ["Policy", *["Association"] * 7, "Policy", "Cover", "Guards"]
    assert kernel.shield == {}


def test_associations_follow_the_peers_of_encrypted_networks(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """One set per tunnel address, however many endpoints and networks use it; none for plain ones."""
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    engine.put_network(make.network(2))
    engine.set_peers(make.network(2).id, [make.peer(2, 20, vtep=9)])
    assert associations(kernel) == []
    engine.put_network(secret(make))
    net = secret(make).id
    engine.set_peers(net, [make.peer(1, n, vtep=v) for n, v in ((20, 2), (21, 2), (22, 3))])
    assert {str(item.source) for item in associations(kernel) if not item.sends} == {
        "192.0.2.2",
        "192.0.2.3",
    }
    engine.remove_peer(net, make.peer(1, 20).ip)
    assert len(associations(kernel)) == 14
    engine.remove_peer(net, make.peer(1, 21).ip)
    assert len(associations(kernel)) == 7
    engine.set_peer(make.peer(1, 22, vtep=4))
    assert {str(item.destination) for item in associations(kernel) if item.sends} == {"192.0.2.4"}
    seen = record(kernel)
    engine.set_peer(make.peer(1, 23, vtep=4))
    assert not any(isinstance(op.object, Association | Policy) for op in seen)


def test_rotation_adds_first_and_keeps_withdrawn_keys_for_a_while(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """Ways in, way out, policy in place; what was used before goes a minute later."""
    engine = Engine(settings, kernel)
    engine.put_network(secret(make))
    engine.set_peer(make.peer(1, 20))
    engine.set_keys(keys(make, 1, 2, 3), 0)
    seen = record(kernel)
    engine.set_keys(keys(make, 2, 3, 4), 100)
    local, remote = settings.vtep, make.peer(1, 20).vtep
    shape = [(type(op), type(op.object), getattr(op.object, "sends", None)) for op in seen]
    assert shape == [
        (Put, Association, False),
        (Put, Association, False),
        (Put, Association, True),
        (Put, Policy, None),
    ]
    assert seen[3].object.spi == seen[2].object.spi == crypto.spi(local, remote, 3)
    assert len(associations(kernel)) == 10
    seen.clear()
    assert engine.check_shield(100 + crypto.GRACE - 1).drift == 0
    assert seen == []
    assert engine.check_shield(100 + crypto.GRACE).drift == 0, "that was due, not drift"
    assert [type(op) for op in seen] == [Drop] * 3
    assert seen[0].object.spi == crypto.spi(local, remote, 2)
    assert {op.object.spi for op in seen[1:]} == {
        crypto.spi(remote, local, 1, short=short) for short in (False, True)
    }
    engine.set_keys(keys(make, 4, 3, 2), 200)
    assert len(seen) == 3, "the same keys in another order are the same keys"


def test_a_network_may_come_before_its_keys(make: Any, settings: Settings, kernel: Any) -> None:
    """It is closed; the peers' associations appear with the keys, and go with them."""
    engine = Engine(settings, kernel)
    engine.put_network(secret(make))
    engine.set_peer(make.peer(1, 20))
    assert associations(kernel) == []
    assert engine.encryption().keys is None
    engine.set_keys(keys(make, 1, 2, 3), 0)
    assert len(associations(kernel)) == 7
    engine.set_keys((), 0)
    assert not any(isinstance(item, Policy) and item.spi for item in kernel.shield.values())
    assert engine.check_shield(crypto.GRACE).failures == ()
    assert associations(kernel) == []
    kernel.assert_closed()


@pytest.mark.parametrize("first", ["keys", "reconcile", "check"])
def test_a_new_agent_leaves_what_runs_alone(
    make: Any, settings: Settings, kernel: Any, first: str
) -> None:
    """Whatever it hears first: guards and associations stay until it can judge them."""
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    engine.put_network(secret(make))
    engine.plug(make.endpoint(1, 2))
    engine.set_peer(make.peer(1, 20))
    before = dict(kernel.shield)
    seen = record(kernel)
    heir = Engine(settings, kernel)
    wanted = Wanted(
        networks=(secret(make),), endpoints=(make.endpoint(1, 2),), peers=(make.peer(1, 20),)
    )
    if first == "keys":
        heir.set_keys(keys(make, 1, 2, 3), 0)
    elif first == "check":
        heir.check_shield(0)
    assert heir.reconcile(wanted).operations == 0
    heir.set_keys(keys(make, 1, 2, 3), 0)
    assert heir.check_shield(0).drift == 0
    assert kernel.shield == before
    assert seen == []
    # A third one learns that nothing of it is wanted any more.
    third = Engine(settings, kernel)
    third.set_keys(keys(make, 1, 2, 3), 0)
    third.reconcile(Wanted())
    assert kernel.shield == {}


def test_keys_that_changed_while_the_agent_was_away(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """Also under the tag of an old one (a cluster made anew): the association is replaced."""
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    engine.put_network(secret(make))
    engine.set_peer(make.peer(1, 20))
    heir = Engine(settings, kernel)
    heir.reconcile(Wanted(networks=(secret(make),), peers=(make.peer(1, 20),)))
    other = [replace(key, key=bytes(16)) for key in keys(make, 1, 2, 3)]
    heir.set_keys(other, 0)
    assert {item.material[:16] for item in associations(kernel) if item.material} == {bytes(16)}


def test_without_esp_a_network_is_refused_and_its_old_router_removed(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """Proven once when it works, each time when it does not; others are none the worse."""
    engine = Engine(settings, kernel)
    engine.put_network(secret(make))
    engine.put_network(secret(make, 2))
    assert kernel.proofs == 1
    kernel.lacks = "no ESP here"
    heir = Engine(settings, kernel)
    report = heir.reconcile(Wanted(networks=(secret(make), make.network(2))))
    assert [failure.id for failure in report.failed] == [secret(make).id]
    assert "no ESP here" in report.failed[0].text
    assert list(kernel.held) == [make.network(2).id[:12]]
    with pytest.raises(HostError, match="n1 is encrypted: no ESP here"):
        heir.put_network(secret(make))
    kernel.lacks = ""
    heir.put_network(secret(make))


def test_a_network_that_failed_half_way_stays_covered(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """Its router may be there; the guards stay until it is removed for good."""
    engine = Engine(settings, kernel)
    state = Engine(settings, kernel)
    state.put_network(secret(make))  # what an earlier agent left
    kernel.held[secret(make).id[:12]].pop(("ruleset",))
    apply = kernel.apply

    def failing(name: str, ops: Any) -> None:
        if name == secret(make).id[:12]:
            raise HostError("nftables is out of order")
        apply(name, ops)

    kernel.apply = failing
    report = engine.reconcile(Wanted(networks=(secret(make),)))
    assert report.failed
    kernel.apply = apply
    assert engine.check_shield(0).drift == 0
    kernel.assert_closed()
    assert any(isinstance(item, Cover) for item in kernel.shield.values())
    engine.remove_network(secret(make).id)
    assert kernel.shield == kernel.held == {}


def test_a_network_changes_between_plain_and_encrypted(
    make: Any, settings: Settings, kernel: Any
) -> None:
    """The device is made anew for its source ports; the guards come before and go after."""
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    for encrypted in (False, True, False):
        engine.put_network(make.network(1, encrypted=encrypted))
        engine.set_peer(make.peer(1, 20))
        (device,) = [
            item for item in kernel.held["network1xxxx"].values() if isinstance(item, Vxlan)
        ]
        assert device.sources == ((61440, 65535) if encrypted else (32768, 60999))
        assert bool(kernel.shield) is encrypted


def test_what_the_check_says(make: Any, settings: Settings, kernel: Any) -> None:
    """Damage is repaired and counted; a key that is nearly used up is named."""
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    engine.put_network(secret(make))
    engine.set_peer(make.peer(1, 20))
    before = dict(kernel.shield)
    for key in list(before):
        del kernel.shield[key]
    kernel.watched = False  # it is open: that was the damage
    assert engine.check_shield(0).drift == len(before)
    assert kernel.shield == before
    kernel.watched = True
    (out,) = [item for item in associations(kernel) if item.sends]
    kernel.shield[out.key] = replace(out, sent=crypto.SEQUENCE_WARNING)
    found = engine.check_shield(0)
    assert found.drift == 0
    assert "rotate" in found.failures[0]
    kernel.device = (7, "bond0")
    assert engine.check_shield(0).drift > 0
    assert kernel.shield["guards",].devices == {(7, "bond0")}
    kernel.device = None  # its address is gone for a moment
    assert engine.check_shield(0).drift == 0


def test_peers_whose_spis_collide(
    make: Any, settings: Settings, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one key one association serves both; it goes with the last of them."""
    monkeypatch.setattr(crypto, "spi", lambda source, target, tag, short=False: 4000 + tag)
    engine = Engine(settings, kernel)
    engine.set_keys(keys(make, 1, 2, 3), 0)
    engine.put_network(secret(make))
    net = secret(make).id
    engine.set_peers(net, [make.peer(1, n, vtep=n) for n in (20, 21)])
    ways_in = [item for item in associations(kernel) if not item.sends]
    assert len(ways_in) == 3
    assert engine.check_shield(0).failures == ()
    engine.remove_peer(net, make.peer(1, 20).ip)
    assert len([item for item in associations(kernel) if not item.sends]) == 3
    # One SPI for two keys cannot serve both: that is said.
    monkeypatch.setattr(crypto, "spi", lambda source, target, tag, short=False: 4000)
    engine.set_keys(keys(make, 4, 5, 6), 0)
    assert "collide" in engine.check_shield(0).failures[0]


def test_notifications_are_understood() -> None:
    """Removals in our tables or of IPsec; others' business is left alone, garbage is looked into."""

    def message(kind: int, body: bytes) -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body

    def about(kind: int, table: bytes) -> bytes:
        name = table + b"\0"
        name += b"\0" * (-len(name) % 4)
        size = 4 + len(table) + 1
        return message(10 << 8 | kind, bytes(4) + struct.pack("=HH", size, 1) + name)

    netfilter = monitor.NETLINK_NETFILTER
    for kind in (2, 5, 8, 14):
        assert monitor.concerns_us(netfilter, about(kind, b"overswarm-ipsec"))
        assert not monitor.concerns_us(netfilter, about(kind, b"kube-proxy"))
    assert not monitor.concerns_us(netfilter, about(0, b"overswarm-ipsec")), "it came"
    assert not monitor.concerns_us(netfilter, message(1 << 8 | 2, bytes(8))), "conntrack"
    for kind in (xfrm.DELSA, xfrm.FLUSHSA, xfrm.DELPOLICY, xfrm.FLUSHPOLICY):
        assert monitor.concerns_us(xfrm.NETLINK_XFRM, message(kind, b""))
    assert not monitor.concerns_us(xfrm.NETLINK_XFRM, message(xfrm.NEWSA, b""))
    assert monitor.concerns_us(netfilter, struct.pack("=IHHII", 99, 0, 0, 0, 0))
