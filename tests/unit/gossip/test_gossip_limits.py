"""What happens at the limits: of datagrams, of full exchanges, and of what is learnt twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gossip.networkdb import core, judge
from agent.gossip.networkdb import wire as tables
from agent.gossip.networkdb.peers import Attachment, Peer, Peers, PeerState
from agent.gossip.networkdb.publisher import PACKETS, copies, packed
from agent.gossip.networkdb.wire import Action, BulkSync, NetworkEvent, PushPullState, TableEvent
from agent.gossip.swim import wire

NET, TABLE = "net-a", "endpoint_table"


def entry(
    owner: str, time: int, key: str, value: bytes = b"v", action: Action = Action.CREATE
) -> TableEvent:
    """Return a table event."""
    return TableEvent(
        action=action, time=time, owner=owner, network=NET, table=TABLE, key=key, value=value
    )


def sync(node: str, time: int, *events: tables.Event) -> BulkSync:
    """Return a bulk sync that answers a request."""
    payload = tables.compound([tables.encode(event) for event in events])
    return BulkSync(time=time, unsolicited=False, node=node, networks=(NET,), payload=payload)


@pytest.fixture
def db(bench: Any) -> Any:
    """Return a node on one network with the peers n1 and n2."""
    bench.node.db.join_network(NET)
    bench.meet("n1", "n2")
    bench.event(
        *(NetworkEvent(joining=True, time=1, node=name, network=NET) for name in ("n1", "n2"))
    )
    bench.answering = True
    bench.node.take_changes()
    return bench


def gossiped(db: Any) -> list[list[tables.Body]]:
    """Return and forget the events of every table datagram sent so far."""
    found = []
    for _, message in db.take_sent(wire.User):
        leaves = tables.unfold_untrusted(message.body)
        found.append([tables.decode_untrusted(leaf) for leaf in leaves])
    return [group for group in found if any(isinstance(event, TableEvent) for event in group)]


def await_sync(db: Any) -> tuple[str, BulkSync]:
    """Let time pass until the node asks a peer for a bulk sync; the peer's name and the request."""
    db.syncs()
    for _ in range(200):
        db.pass_time(0.25, step=0.25)
        for host, message, _ in db.syncs():
            if message.unsolicited:
                return next(m.name for m in db.node.swim.members if m.host == host), message
    raise AssertionError("no bulk sync")


# -- how often, and how much at once -------------------------------------------------------


@pytest.mark.parametrize("nodes", [2, 10, 100, 1000, 10_000])
def test_copies_leave_one_event_in_a_thousand_incomplete_at_worst(nodes: int) -> None:
    """At a fifth of all datagrams lost, the chance that gossip alone misses anybody is below 0.1 %."""
    arriving = copies(nodes) * 0.8
    assert nodes * math.exp(-arriving) <= 1e-3
    assert copies(nodes) <= math.log(nodes) / 0.8 + 10


@given(st.lists(st.binary(max_size=200), max_size=60), st.integers(210, 1400))
def test_packed_groups_fit_and_lose_nothing(events: list[bytes], room: int) -> None:
    """Every group fits a datagram; together, in order, they are what was given."""
    groups = packed(events, room)
    assert [event for group in groups for event in group] == events
    assert all(sum(len(event) + tables.PART_HEADER for event in group) <= room for group in groups)
    assert all(groups)


def test_a_backlog_leaves_in_several_datagrams_a_round(db: Any) -> None:
    """A burst is out within a second: up to four datagrams per round and peer, and never more."""
    for index in range(60):
        db.node.db.put(TABLE, NET, f"k{index}", bytes(100))
    gossiped(db)
    db.pass_time(0.2, step=0.2)
    groups = gossiped(db)
    assert len({e.key for group in groups for e in group if isinstance(e, TableEvent)}) >= 20
    assert len(groups) <= 2 * (PACKETS + 1) * 2  # two peers; the direct sends and one round
    db.pass_time(1.0)
    assert len({e.key for group in gossiped(db) for e in group if isinstance(e, TableEvent)}) >= 40


def test_an_event_is_passed_on_as_often_as_it_has_to_be(db: Any) -> None:
    """Sends to peers are counted, not rounds."""
    db.node.db.state.own[NET].in_sync = True
    db.event(entry("n1", 5, "relayed"))
    db.pass_time(5.0)
    sent = sum(
        isinstance(e, TableEvent) and e.key == "relayed" for group in gossiped(db) for e in group
    )
    assert copies(3) <= sent <= copies(3) + 1


def test_what_no_datagram_carries_is_not_queued_for_one(db: Any) -> None:
    """A large entry of another node, known from a bulk sync, never blocks the queue of relays."""
    db.node.db.state.own[NET].in_sync = True
    db.event(sync("n1", 50, entry("n1", 5, "large", bytes(3000)), entry("n1", 6, "small")))
    own = db.node.db.state.own[NET]
    assert f"{TABLE}/small" in own.relayed
    assert f"{TABLE}/large" not in own.relayed
    assert db.node.entries(TABLE, NET).keys() == {"large", "small"}


# -- full exchanges ------------------------------------------------------------------------


def test_a_full_exchange_never_outgrows_what_engines_accept(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own attachments are always in it; of the others, a part that changes from time to time."""
    monkeypatch.setattr(core, "MAX_STATE", 2000)
    for index in range(300):
        db.event(NetworkEvent(joining=True, time=2, node="n1", network=f"network-{index}"))
    seen: set[str] = set()
    for _ in range(40):
        state = tables.decode_untrusted(db.node.db.local_state(join=False))
        assert isinstance(state, PushPullState)
        assert len(state.attachments) < 120
        assert any(each.node == "me" and each.network == NET for each in state.attachments)
        seen |= {each.network for each in state.attachments}
    assert len(seen) > 250
    assert db.node.db.trimmed == 40


def test_a_full_exchange_that_fits_is_whole(db: Any) -> None:
    """Nothing is left out without need."""
    state = tables.decode_untrusted(db.node.db.local_state(join=False))
    assert isinstance(state, PushPullState)
    assert {(each.node, each.network) for each in state.attachments} == {
        ("me", NET),
        ("n1", NET),
        ("n2", NET),
    }
    assert db.node.db.trimmed == 0


# -- what is known already -----------------------------------------------------------------


def test_the_same_event_again_is_not_parsed_again(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen copies of each event arrive: only the first is worth the work."""
    event = entry("n1", 5, "k")
    joined = NetworkEvent(joining=True, time=9, node="n1", network="net-b")
    db.event(event, joined)
    parsed: list[bytes] = []
    real = tables.decode_untrusted
    monkeypatch.setattr(
        judge, "decode_untrusted", lambda data: (parsed.append(data), real(data))[1]
    )
    db.event(event, joined)
    assert parsed == []
    db.event(entry("n1", 6, "k"))
    assert len(parsed) == 1


def test_an_old_event_is_judged_again_once_its_entry_is_gone_or_hidden(db: Any) -> None:
    """What was known is forgotten with the entry: neither a delete nor a failure leaves a trace of it."""
    event = entry("n1", 5, "k")
    db.event(event)
    db.event(entry("n1", 6, "k", action=Action.DELETE))
    db.event(event)
    assert db.node.entries(TABLE, NET) == {}
    db.event(entry("n1", 7, "k"))
    db.give(wire.Dead(incarnation=1, node="n1", origin="n2"))
    assert db.node.entries(TABLE, NET) == {}
    db.event(entry("n1", 7, "k"))  # still hidden: its owner is away
    assert db.node.entries(TABLE, NET) == {}
    assert not db.node.db.state.store._known


def test_own_entries_in_a_sync_are_always_looked_at(db: Any) -> None:
    """A reply that holds our entry is how we know that it is not lost; it must not be passed over."""
    db.node.db.put(TABLE, NET, "mine", b"v")
    name, request = await_sync(db)
    mine = db.node.db.state.store.get(NET, next(iter(db.node.db.state.own[NET].wishes)))
    db.event(sync(name, request.time + 1, entry("me", mine.time, "mine")))
    db.pass_time(1.5)
    compared = db.node.db.state.peers.get(name).compared
    assert (compared.entries, compared.lacking) == (1, 0)
    assert db.node.db.state.own[NET].syncs == 1


def test_what_a_peer_lacks_is_counted_and_published_again(db: Any) -> None:
    """A reply without our entry: convergence with that peer is one behind, and the entry goes out again."""
    db.node.db.put(TABLE, NET, "mine", b"v")
    name, request = await_sync(db)
    gossiped(db)
    db.event(sync(name, request.time + 1))
    db.pass_time(2.0)
    compared = db.node.db.state.peers.get(name).compared
    assert (compared.entries, compared.lacking) == (1, 1)
    assert any(
        isinstance(e, TableEvent) and e.key == "mine" for group in gossiped(db) for e in group
    )


# -- the index of peers against an obvious one ---------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "fail", "leave", "return", "attach", "end", "detach", "move", "forget"]
        ),
        st.integers(0, 4),
        st.integers(0, 2),
    ),
    max_size=60,
)


@given(STEPS)
def test_indexes_of_peers_say_what_a_walk_would_say(steps: list[tuple[str, int, int]]) -> None:
    """By network, address, state and known event, after anything."""
    peers = Peers()
    begun = [(step, index, index) for step in ("add", "attach") for index in range(3)]
    for time, (step, index, other) in enumerate([*begun, *steps]):
        name, network = f"p{index}", f"net-{other}"
        peer = peers.get(name)
        if step == "add" and peer is None:
            peers.add(Peer(name=name, host="h", port=other, state=PeerState.ACTIVE, changed=0.0))
        if peer is None:
            continue
        match step:
            case "fail":
                peers.move(peer, PeerState.FAILED, float(time))
            case "leave":
                peers.move(peer, PeerState.LEFT, float(time))
            case "return":
                peers.move(peer, PeerState.ACTIVE, float(time))
            case "attach" | "end":
                encoded = b"%s %s %d" % (name.encode(), network.encode(), time)
                attachment = Attachment(
                    time=time, leaving=step == "end", changed=0.0, encoded=encoded
                )
                peers.attach(peer, network, attachment)
            case "detach":
                peers.detach(peer, network)
            case "move":
                peers.readdress(peer, "gh"[other > 0], other)
            case "forget":
                peers.forget(peer)
            case _:
                pass
        on = {
            each.name for each in peers
            if each.state is PeerState.ACTIVE
            and network in each.attachments
            and not each.attachments[network].leaving
        }  # fmt: skip
        assert {each.name for each in peers.on(network)} == on  # asked all the time: never outdated
    everyone = sorted(peers, key=lambda each: each.name)
    for other in range(3):
        network = f"net-{other}"
        on = [
            each for each in everyone
            if each.state is PeerState.ACTIVE and network in each.attachments and not each.attachments[network].leaving
        ]  # fmt: skip
        assert list(peers.on(network)) == on
        for host in ("h", "g"):
            assert {id(each) for each in peers.at_address(host, other)} == {
                id(e) for e in everyone if (e.host, e.port) == (host, other)
            }
    for host in ("h", "g"):
        assert peers.at_host(host) == any(each.host == host for each in everyone)
    assert {each.name for each in peers.away()} == {
        e.name for e in everyone if e.state is not PeerState.ACTIVE
    }
    assert peers.active() == sum(each.state is PeerState.ACTIVE for each in everyone)
    held = {a.encoded for each in everyone for a in each.attachments.values()}
    assert peers._known == held
    assert {(p.name, n) for p, n in peers.ended()} == {
        (each.name, n) for each in everyone for n, a in each.attachments.items() if a.leaving
    }
