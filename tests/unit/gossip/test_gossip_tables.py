"""NetworkDB's rules, one node against a hand that writes events."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gossip.changes import ChangeKind
from agent.gossip.networkdb import early as early_module
from agent.gossip.networkdb import wire as tables
from agent.gossip.networkdb.clock import LamportClock
from agent.gossip.networkdb.early import Early
from agent.gossip.networkdb.sync import Chunker
from agent.gossip.networkdb.wire import Action, BulkSync, NetworkEvent, NodeEvent, TableEvent
from agent.gossip.records import EndpointRecord
from agent.gossip.refusal import Refusal
from agent.gossip.swim import wire
from swarm.errors import InvalidArgumentError, PreconditionError, WireError

NET = "net-a"
TABLE = "endpoint_table"


def attach(node: str, time: int = 1, *, joining: bool = True, network: str = NET) -> NetworkEvent:
    """Return a network event."""
    return NetworkEvent(joining=joining, time=time, node=node, network=network)


def entry(
    owner: str,
    time: int,
    value: bytes = b"v",
    *,
    key: str = "k",
    action: Action = Action.CREATE,
    residual: int = 0,
) -> TableEvent:
    """Return a live table event."""
    return TableEvent(
        action=action, time=time, owner=owner, network=NET, table=TABLE, key=key, value=value,
        residual=residual,
    )  # fmt: skip


def gone(
    owner: str, time: int, value: bytes = b"v", *, key: str = "k", residual: int = 1800
) -> TableEvent:
    """Return a delete event."""
    return entry(owner, time, value, key=key, action=Action.DELETE, residual=residual)


def sync(
    node: str,
    time: int,
    *events: tables.Event,
    unsolicited: bool = False,
    networks: tuple[str, ...] = (NET,),
) -> BulkSync:
    """Return a bulk sync."""
    payload = tables.compound([tables.encode(event) for event in events])
    return BulkSync(
        time=time, unsolicited=unsolicited, node=node, networks=networks, payload=payload
    )


@pytest.fixture
def db(bench: Any) -> Any:
    """Return the bench of a node on one network with the peers n1 and n2."""
    bench.node.db.join_network(NET)
    bench.meet("n1", "n2")
    bench.event(attach("n1"), attach("n2"))
    bench.answering = True
    changes(bench)
    return bench


def changes(bench: Any) -> list[tuple[ChangeKind, str, bytes]]:
    """Return and forget what readers heard."""
    return [(c.kind, c.key, c.value) for c in bench.node.take_changes()]


def visible(bench: Any) -> dict[str, tuple[str, bytes]]:
    """Return what readers see."""
    return {k: (e.owner, e.value) for k, e in bench.node.entries(TABLE, NET).items()}


def relayed(bench: Any) -> int:
    """Return how many events wait to be relayed."""
    return len(bench.node.db.state.own[NET].relayed)


def own_events(bench: Any) -> list[Any]:
    """Return and forget the own table events waiting to be gossiped."""
    queue = bench.node.db.state.own[NET].ours
    leaves = [
        x for m in queue.take(room=9999, overhead=0, limit=1) for x in tables.unfold_untrusted(m)
    ]
    return [tables.decode_untrusted(leaf) for leaf in leaves]


def announcements(bench: Any) -> list[Any]:
    """Return and forget the node and network events waiting to be gossiped."""
    taken = bench.node.db.publisher.queue.take(room=9999, overhead=0, limit=1)
    return [tables.decode_untrusted(message) for message in taken]


# -- wire ---------------------------------------------------------------------------------------


def test_vectors() -> None:
    """A join of a network, and an empty compound."""
    event = attach("bbbbbbbbbbbb", 4, network="netA")
    assert tables.encode(event).hex() == "08011218080110041a0c62626262626262626262626222046e657441"
    assert tables.decode_untrusted(tables.encode(event)) == event
    assert tables.compound([]).hex() == "0805"
    assert tables.unfold_untrusted(bytes.fromhex("0805")) == []


names = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=30)
times = st.integers(0, tables.MAX_TIME - 1)
events = st.one_of(
    st.builds(NodeEvent, joining=st.booleans(), time=times, node=names),
    st.builds(NetworkEvent, joining=st.booleans(), time=times, node=names, network=names),
    st.builds(
        TableEvent,
        action=st.sampled_from(Action),
        time=times,
        owner=names,
        network=names,
        table=names,
        key=names,
        value=st.binary(max_size=100),
        residual=st.integers(0, 2**31 - 1),
    ),
    st.builds(
        BulkSync,
        time=times,
        unsolicited=st.booleans(),
        node=names,
        networks=st.lists(names, max_size=4).map(tuple),
        payload=st.binary(max_size=60),
    ),
    st.builds(
        tables.PushPullState,
        time=times,
        node=names,
        attachments=st.lists(
            st.builds(NetworkEvent, joining=st.booleans(), time=times, node=names, network=names),
            max_size=4,
        ).map(tuple),
    ),
)


@given(events)
def test_messages_round_trip(message: tables.Body) -> None:
    """What is written is read."""
    assert tables.decode_untrusted(tables.encode(message)) == message


@given(st.binary(max_size=200) | events.map(tables.encode), st.data())
def test_any_bytes_parse_or_are_refused(data: bytes, draw: st.DataObject) -> None:
    """Nothing but WireError leaves the parsers, whole, cut at each byte, or damaged."""
    broken = bytearray(data or b"\x00")
    broken[draw.draw(st.integers(0, len(broken) - 1))] = draw.draw(st.integers(0, 255))
    for candidate in (data, bytes(broken), *(data[:length] for length in range(len(data)))):
        for parse in (tables.decode_untrusted, tables.unfold_untrusted):
            with contextlib.suppress(WireError):
                parse(candidate)


@pytest.mark.parametrize(
    "event",
    [
        attach(""),
        attach("n/1"),
        attach("n" * 256),
        attach("n1", tables.MAX_TIME),
        entry("n1", 1, key=""),
        entry("n1", 1, key="a/b"),
        entry("n1", 1, key="k" * 1025),
        entry("n1", 1, bytes(tables.MAX_VALUE + 1)),
    ],
)
def test_values_beyond_a_bound_are_refused(event: tables.Event) -> None:
    """Empty or overlong names, slashes, huge values, times that overflow a clock."""
    with pytest.raises(WireError):
        tables.decode_untrusted(tables.encode(event))


@pytest.mark.parametrize("data", ["0800", "0863", "08021200", "080112020803", "08021202080a"])
def test_unknown_kinds_are_refused(data: str) -> None:
    """Of messages, presences and actions."""
    with pytest.raises(WireError):
        tables.decode_untrusted(bytes.fromhex(data))


def test_nested_compounds_are_read_within_a_bound() -> None:
    """Four deep, no more."""
    data = tables.encode(attach("n1"))
    for _ in range(tables.MAX_DEPTH):
        data = tables.compound([data])
    assert len(tables.unfold_untrusted(data)) == 1
    with pytest.raises(WireError, match="deeper"):
        tables.unfold_untrusted(tables.compound([data]))


# -- clocks -------------------------------------------------------------------------------------


def test_lamport_clock() -> None:
    """Increments return the new time; whatever is witnessed is left behind."""
    clock = LamportClock()
    assert clock.increment() == 1
    clock.witness(7)
    clock.witness(3)
    assert (clock.time, clock.increment()) == (8, 9)


def test_every_event_is_witnessed_even_if_refused(db: Any) -> None:
    """Own times are ahead of everything seen, of strangers and stale news too."""
    db.event(entry("stranger", 500), attach("stranger", 700))
    db.node.db.put(TABLE, NET, "mine", b"x")
    assert own_events(db)[0].time > 500
    db.node.db.join_network("other")
    assert max(e.time for e in announcements(db)) > 700


# -- entries of others --------------------------------------------------------------------------


def test_create_update_delete(db: Any) -> None:
    """Readers hear what changed, judged by what was there; everything is relayed."""
    db.event(entry("n1", 5, b"a"))
    db.event(entry("n1", 6, b"b"))
    db.event(gone("n1", 7, b""))
    assert changes(db) == [
        (ChangeKind.CREATE, "k", b"a"),
        (ChangeKind.UPDATE, "k", b"b"),
        (ChangeKind.DELETE, "k", b"b"),
    ]
    assert visible(db) == {}
    assert relayed(db) == 1


@pytest.mark.parametrize("time", [3, 5])
def test_older_and_equal_times_lose(db: Any, time: int) -> None:
    """The first of equals stays."""
    db.event(entry("n1", 5, b"a"))
    db.event(entry("n2", time, b"b"), gone("n1", time))
    assert visible(db) == {"k": ("n1", b"a")}


def test_newest_writer_owns(db: Any) -> None:
    """The same key from another node, later."""
    db.event(entry("n1", 5, b"a"), entry("n2", 6, b"a"))
    assert visible(db) == {"k": ("n2", b"a")}
    assert changes(db)[-1] == (ChangeKind.UPDATE, "k", b"a")


def test_tombstone_for_an_unknown_key_blocks_the_late_create(db: Any) -> None:
    """Reordered gossip does not resurrect."""
    db.event(gone("n1", 9))
    db.event(entry("n1", 8))
    assert visible(db) == {}
    assert relayed(db) == 0


@pytest.mark.parametrize(("residual", "relays"), [(0, 0), (300, 0), (301, 1), (1800, 1)])
def test_unknown_tombstones_are_relayed_from_bulk_syncs_only_when_young(
    db: Any, residual: int, relays: int
) -> None:
    """Those with more than five minutes left."""
    db.event(sync("n1", 50, gone("n1", 9, residual=residual)))
    assert relayed(db) == relays


def test_entries_of_networks_not_taken_part_in_are_ignored(bench: Any) -> None:
    """Neither stored nor relayed."""
    bench.meet("n1")
    bench.event(attach("n1"), entry("n1", 5))
    assert bench.node.db.state.store.size == 0


def test_backlog_stops_relaying_bulk_syncs(db: Any) -> None:
    """A large sync does not bury everybody's gossip under relays; all of it is stored."""
    many = [entry("n1", 10 + i, key=f"k{i}") for i in range(700)]
    db.event(sync("n1", 900, *many))
    assert len(visible(db)) == 700
    assert relayed(db) == 501


def test_large_messages_are_worked_on_in_slices(db: Any) -> None:
    """No slice takes long, and the reply comes after the last."""
    many = [entry("n1", 10 + i, key=f"k{i}") for i in range(700)]
    db.syncs()
    body = tables.encode(sync("n1", 900, *many, unsolicited=True))
    db.serve(wire.User(body=body))
    assert db.node.work(db.now)
    assert 0 < len(visible(db)) < 300
    db.collect()
    assert not db.syncs()
    while db.node.work(db.now):
        pass
    db.collect()
    assert len(visible(db)) == 700
    assert [message.unsolicited for _, message, _ in db.syncs()] == [False]


# -- order of arrival ---------------------------------------------------------------------------


def test_entry_ahead_of_its_attachment_waits(db: Any) -> None:
    """Last in, first out: the entry is kept until the attachment is heard of."""
    db.meet("n3")
    db.event(entry("n3", 5))
    assert visible(db) == {}
    db.pass_time(5.0)
    db.event(attach("n3", 3))
    assert visible(db) == {"k": ("n3", b"v")}


def test_attachment_and_entry_ahead_of_the_member_wait(db: Any) -> None:
    """Even before membership has heard of the node."""
    db.event(attach("n3", 3), entry("n3", 5))
    assert visible(db) == {}
    db.meet("n3")
    assert visible(db) == {"k": ("n3", b"v")}


def test_early_entries_are_not_kept_for_ever(db: Any) -> None:
    """After some seconds bulk sync has to do it."""
    db.meet("n3")
    db.event(entry("n3", 5))
    db.pass_time(16.0)
    assert len(db.node.db.early) == 0


def test_early_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by bytes; the oldest give way."""
    monkeypatch.setattr(early_module, "MAX_EVENTS", 3)
    monkeypatch.setattr(early_module, "MAX_BYTES", 10)
    kept = Early()
    for event in (b"1", b"2", b"3", b"4"):
        kept.keep("n", event, until=1.0, bulk=False)
    assert (len(kept), kept.dropped) == (3, 1)
    kept.keep("n", b"123456789", until=1.0, bulk=True)
    assert kept.take("n") == [(b"4", False), (b"123456789", True)]
    assert kept.dropped == 3
    kept.keep("n", b"1234567890", until=1.0, bulk=True)  # what is taken counts no more
    assert len(kept) == 1


@pytest.mark.parametrize("first", [1, 2])
def test_attachments_count_by_time_not_arrival(db: Any, first: int) -> None:
    """Leave and rejoin in either order end joined."""
    pair = [attach("n1", 2, joining=False), attach("n1", 3)]
    db.event(pair[first - 1])
    db.event(pair[2 - first])
    db.event(entry("n1", 5))
    assert visible(db) == {"k": ("n1", b"v")}


def test_leave_of_a_network_drops_the_entries(db: Any) -> None:
    """At once, and late copies stay out."""
    db.event(entry("n1", 5), entry("n2", 6, key="other"))
    db.event(attach("n1", 2, joining=False))
    assert visible(db) == {"other": ("n2", b"v")}
    db.event(entry("n1", 7))
    assert visible(db) == {"other": ("n2", b"v")}


# -- nodes that fail, leave, return -------------------------------------------------------------


def suspect(name: str) -> wire.Suspect:
    """Return an accusation."""
    return wire.Suspect(incarnation=1, node=name, origin="x")


def dead(name: str, origin: str = "x") -> wire.Dead:
    """Return a death notice."""
    return wire.Dead(incarnation=1, node=name, origin=origin)


def test_suspicion_purges_nothing(db: Any) -> None:
    """An entry outlives a doubt."""
    db.event(entry("n1", 5))
    changes(db)
    db.give(suspect("n1"))
    assert (visible(db), changes(db)) == ({"k": ("n1", b"v")}, [])


def test_failure_hides_and_return_restores(db: Any) -> None:
    """What the owner changed meanwhile counts; attachments are remembered; a sync follows."""
    db.event(entry("n1", 5), entry("n1", 6, key="gone"))
    changes(db)
    db.give(dead("n1"))
    assert visible(db) == {}
    assert {c[0] for c in changes(db)} == {ChangeKind.DELETE}
    db.event(entry("n1", 8, b"newer"), gone("n1", 9, key="gone"))
    assert changes(db) == []
    assert relayed(db) == 2
    db.syncs()
    db.meet("n1", incarnation=2)
    assert visible(db) == {"k": ("n1", b"newer")}
    assert changes(db) == [(ChangeKind.CREATE, "k", b"newer")]
    ((host, message, _),) = db.syncs()
    assert (host, message.networks, message.unsolicited) == ("10.0.0.1", (NET,), True)


def test_hidden_entries_age_out(db: Any) -> None:
    """After half an hour nobody remembers them; until then bulk syncs say how long they have."""
    db.event(entry("n1", 5))
    db.give(dead("n1"))
    db.syncs()
    db.event(sync("n2", 20, unsolicited=True))
    ((_, _, held),) = db.syncs()
    assert [e.residual for e in held if isinstance(e, TableEvent)] == [1800]
    db.pass_time(1806.0, step=1.0)
    assert db.node.db.state.store.size == 0


@pytest.mark.parametrize("how", ["node event", "membership"])
def test_leaving_removes_at_once(db: Any, how: str) -> None:
    """Entries and attachments; nothing of it comes back by late copies."""
    db.event(entry("n1", 5))
    if how == "membership":
        db.give(dead("n1", "n1"))
    else:
        db.event(NodeEvent(joining=False, time=9, node="n1"))
    assert visible(db) == {}
    db.event(attach("n1", 20), entry("n1", 21))
    assert (visible(db), db.node.db.state.store.size) == ({}, 0)


def test_node_event_never_revives(db: Any) -> None:
    """Joins are a relic; only membership brings a node back."""
    db.event(NodeEvent(joining=False, time=9, node="n1"))
    db.event(NodeEvent(joining=True, time=10, node="n1"), attach("n1", 20), entry("n1", 21))
    assert visible(db) == {}
    db.event(NodeEvent(joining=False, time=9, node="n2"))
    assert announcements(db)  # the first leave is passed on


def test_living_member_that_said_it_leaves_is_believed_to_live_after_a_while(db: Any) -> None:
    """Membership is right when both disagree for long."""
    db.event(NodeEvent(joining=False, time=9, node="n1"))
    db.pass_time(70.0)
    db.event(attach("n1", 20), entry("n1", 21))
    assert visible(db) == {"k": ("n1", b"v")}


def test_new_name_at_a_failed_address_replaces_the_old(db: Any, claim: Any) -> None:
    """A restart: what the former life wrote is gone for good."""
    db.event(entry("n1", 5))
    db.give(dead("n1"))
    db.give(claim("n9", addr=b"\x0a\x00\x00\x01"))
    assert db.node.db.state.store.size == 0


def test_new_name_at_a_living_address_evicts_only_once_the_old_is_dead(db: Any, claim: Any) -> None:
    """An active peer is never evicted by its address alone."""
    db.event(entry("n1", 5))
    db.give(claim("n9", addr=b"\x0a\x00\x00\x01"))
    assert visible(db) == {"k": ("n1", b"v")}
    db.give(dead("n1"))
    assert db.node.db.state.store.size == 0


def test_many_nodes_dial_a_failed_one_half_a_minute_apart(db: Any, claim: Any) -> None:
    """With hundreds to try, each tries rarely."""
    db.give(dead("n1"))
    for index in range(400):
        db.give(claim(f"x{index}", addr=bytes((10, 9, index >> 8, index & 255))))
    db.pass_time(60.0, step=0.5)
    db.dials.clear()
    db.pass_time(300.0, step=0.5)
    later = [d for d, m in db.dials if isinstance(m, wire.PushPull) and d.host == "10.0.0.1"]
    assert 8 <= len(later) <= 20


def test_failed_nodes_are_dialled_less_and_less(db: Any) -> None:
    """Each second at first, then every few: one of few nodes may be the only one to mend a partition."""
    db.give(dead("n1"))
    db.dials.clear()
    db.pass_time(10.0)
    joins = [d for d, m in db.dials if isinstance(m, wire.PushPull) and m.join]
    early_joins = len([d for d in joins if d.host == "10.0.0.1"])
    db.dials.clear()
    db.pass_time(300.0, step=0.5)
    later = [d for d, m in db.dials if isinstance(m, wire.PushPull) and d.host == "10.0.0.1"]
    assert 4 <= early_joins <= 10
    assert 75 <= len(later) <= 110


# -- own entries --------------------------------------------------------------------------------


def test_join_is_announced_before_entries_can_exist(bench: Any) -> None:
    """Publishing on a network nobody knows us to be on is refused."""
    with pytest.raises(PreconditionError):
        bench.node.db.put(TABLE, NET, "k", b"v")
    bench.node.db.join_network(NET)
    assert announcements(bench) == [attach("me", 1)]
    bench.node.db.put(TABLE, NET, "k", b"v")
    assert own_events(bench) == [entry("me", 1)]
    bench.node.db.leave_network(NET)
    with pytest.raises(PreconditionError):
        bench.node.db.put(TABLE, NET, "k", b"v")


@pytest.mark.parametrize(
    ("table", "key", "size"),
    [("", "k", 1), ("t/", "k", 1), ("t", "", 1), ("t", "a/b", 1), ("t", "k", tables.MAX_VALUE + 1)],
)
def test_put_refuses_what_others_would(db: Any, table: str, key: str, size: int) -> None:
    """Names and values beyond the limits never leave."""
    with pytest.raises(InvalidArgumentError):
        db.node.db.put(table, NET, key, bytes(size))


def test_changed_value_is_a_delete_and_a_create(db: Any) -> None:
    """Older engines act on the kind of event, and on the value inside the delete."""
    db.node.db.put(TABLE, NET, "k", b"a")
    own_events(db)
    db.node.db.put(TABLE, NET, "k", b"b")
    removed, made = own_events(db)
    assert removed == gone("me", removed.time, b"a")
    assert made == entry("me", removed.time + 1, b"b")
    assert changes(db) == [(ChangeKind.CREATE, "k", b"a"), (ChangeKind.UPDATE, "k", b"b")]


def test_same_value_again_says_nothing(db: Any) -> None:
    """Callers may repeat what they want."""
    db.node.db.put(TABLE, NET, "k", b"a")
    own_events(db)
    db.node.db.put(TABLE, NET, "k", b"a")
    assert own_events(db) == []


def test_draining_endpoint_is_an_update_everywhere(db: Any) -> None:
    """Also in bulk syncs: as a create it would be revived by engines up to 28."""
    value = EndpointRecord(name="c", endpoint_ip="10.1.0.2").encode()
    drained = EndpointRecord(name="c", endpoint_ip="10.1.0.2", service_disabled=True).encode()
    db.node.db.put(TABLE, NET, "k", value)
    db.node.db.put(TABLE, NET, "k", drained)
    assert [e.action for e in own_events(db)] == [Action.UPDATE]
    db.syncs()
    db.event(sync("n2", 20, unsolicited=True))
    ((_, _, held),) = db.syncs()
    assert [e.action for e in held if isinstance(e, TableEvent)] == [Action.UPDATE]


def test_delete_holds_the_last_value(db: Any) -> None:
    """And lasts half an hour; deleting twice, or what is not ours, does nothing."""
    db.node.db.put(TABLE, NET, "k", b"a")
    own_events(db)
    db.node.db.delete(TABLE, NET, "k")
    (event,) = own_events(db)
    assert event == gone("me", event.time, b"a")
    db.event(entry("n1", 5, key="theirs"))
    db.node.db.delete(TABLE, NET, "k")
    db.node.db.delete(TABLE, NET, "theirs")
    assert own_events(db) == []
    assert visible(db) == {"theirs": ("n1", b"v")}
    db.pass_time(1806.0, step=1.0)
    assert "k" not in {key.key for key in db.node.db.state.store.network(NET)}


def heard(bench: Any, seconds: float) -> list[set[str]]:
    """Let time pass; return the keys in each datagram with table events that n1 got meanwhile."""
    bench.sent.clear()
    bench.pass_time(seconds, step=0.001)
    bodies = [m.body for host, m in bench.sent if isinstance(m, wire.User) and host == "10.0.0.1"]
    found = []
    for body in bodies:
        leaves = [tables.decode_untrusted(leaf) for leaf in tables.unfold_untrusted(body)]
        found.append({leaf.key for leaf in leaves if isinstance(leaf, TableEvent)})
    return [keys for keys in found if keys]


def test_an_own_change_goes_out_at_once_and_what_follows_it_together(db: Any) -> None:
    """Nobody waits for a lonely change; a burst still costs one datagram in 10 ms."""
    db.pass_time(1.0)
    for key in ("a", "b"):
        db.node.db.put(TABLE, NET, key, b"v")
    assert heard(db, 0.001) == [{"a", "b"}]
    for key in ("c", "d"):
        db.node.db.put(TABLE, NET, key, b"v")
        assert heard(db, 0.002) == []
    (together,) = heard(db, 0.007)
    assert together >= {"c", "d"}


def test_own_change_is_sent_directly(db: Any) -> None:
    """To every peer of a small network, within a few milliseconds, checksum and all."""
    db.pass_time(3.0)
    db.sent.clear()
    db.node.db.put(TABLE, NET, "k", b"a")
    db.pass_time(0.02, step=0.01)
    targets = {host for host, m in db.sent if isinstance(m, wire.User)}
    assert targets >= {"10.0.0.1", "10.0.0.2"}


def test_oversize_change_goes_by_stream(db: Any) -> None:
    """What no datagram can carry reaches the peers all the same."""
    db.dials.clear()
    db.node.db.put(TABLE, NET, "k", bytes(2000))
    db.collect()
    bodies = [m.body for _, m in db.dials if isinstance(m, wire.User)]
    events = [tables.decode_untrusted(x) for b in bodies for x in tables.unfold_untrusted(b)]
    assert {e.key for e in events if isinstance(e, TableEvent)} == {"k"}
    assert len(bodies) == 2


def test_leaving_a_network_withdraws_and_forgets(db: Any) -> None:
    """Own entries become tombstones that survive a rejoin, others' are dropped."""
    db.node.db.put(TABLE, NET, "mine", b"a")
    db.event(entry("n1", 50, key="theirs"))
    changes(db)
    db.node.db.leave_network(NET)
    assert set(changes(db)) == {
        (ChangeKind.DELETE, "mine", b"a"),
        (ChangeKind.DELETE, "theirs", b"v"),
    }
    assert visible(db) == {}
    (said,) = [e for e in announcements(db) if getattr(e, "node", "") == "me"]
    assert not said.joining
    db.syncs()
    db.node.db.join_network(NET)
    db.collect()
    found = [e for _, _, held in db.syncs() for e in held if isinstance(e, TableEvent)]
    assert {(e.key, e.action) for e in found} == {("mine", Action.DELETE)}


def test_what_is_said_of_a_network_just_left_is_no_concern(db: Any) -> None:
    """Others still gossip about it: nothing is stored, shown, kept for later, or passed on."""
    db.node.db.leave_network(NET)
    changes(db)
    db.event(
        entry("n1", 60), entry("n3", 61, key="early"), sync("n2", 70, entry("n2", 62, key="b"))
    )
    assert (visible(db), changes(db), relayed(db), len(db.node.db.early)) == ({}, [], 0, 0)
    assert len(db.node.db.state.store.network(NET)) == 0


# -- own entries as others hold them --------------------------------------------------------------


def test_forged_tombstone_is_answered(db: Any) -> None:
    """Somebody says that our entry is deleted, at our own time: it is published again, later."""
    db.node.db.put(TABLE, NET, "k", b"a")
    (made,) = own_events(db)
    db.pass_time(2.0)
    db.event(sync("n1", 50, gone("me", made.time)))
    (again,) = own_events(db)
    assert (again.action, again.value) == (Action.CREATE, b"a")
    assert again.time > made.time
    assert visible(db) == {"k": ("me", b"a")}


def test_answers_are_not_faster_than_once_a_second(db: Any) -> None:
    """Two nodes that both believe to be the same do not set the network on fire."""
    db.node.db.put(TABLE, NET, "k", b"a")
    own_events(db)
    for number in range(20):
        db.event(entry("me", 100 + number, b"theirs"))
    assert own_events(db) == []
    before = next(iter(db.node.db.state.store.network(NET).values())).time
    db.pass_time(1.1)
    (current,) = db.node.db.state.store.network(NET).values()
    assert current.value == b"a"
    assert before < current.time < before + 200
    for number in range(20):
        db.event(entry("me", 300 + number, b"theirs"))
    assert next(iter(db.node.db.state.store.network(NET).values())).time == current.time


def test_entry_of_an_earlier_life_is_withdrawn(db: Any) -> None:
    """Nobody else may delete what stands under our name."""
    db.event(entry("me", 77, b"old", key="old"))
    (event,) = own_events(db)
    assert event == gone("me", event.time, b"old", key="old")
    assert event.time > 77
    assert visible(db) == {}
    db.event(entry("me", event.time + 9, b"other", key="old"))
    assert own_events(db)


def test_attachment_of_an_earlier_life_is_withdrawn(db: Any) -> None:
    """A network we are not on, in our name."""
    announcements(db)
    db.event(attach("me", 40, network="old-net"))
    (event,) = announcements(db)
    assert event == attach("me", event.time, joining=False, network="old-net")
    assert event.time > 40


def test_forged_leave_is_answered(db: Any) -> None:
    """Somebody says that we left a network we are on."""
    announcements(db)
    db.event(attach("me", 40, joining=False))
    assert announcements(db) == []
    db.node.db.publisher._announce_all()
    (said,) = announcements(db)
    assert said == attach("me", said.time)
    assert said.time > 40


def test_what_was_doubted_is_announced_after_a_moment(db: Any) -> None:
    """Several doubts within a second cause one announcement."""
    db.event(attach("me", 40, joining=False), attach("me", 41, joining=False))
    db.pass_time(1.2)
    assert db.node.db.state.own[NET].time == 43


def test_overwritten_own_entry_comes_back_when_the_other_is_gone(db: Any) -> None:
    """Another living node's newer claim wins; once it is gone ours is published again."""
    db.node.db.put(TABLE, NET, "k", b"mine")
    db.event(entry("n1", 500, b"theirs"))
    assert visible(db) == {"k": ("n1", b"theirs")}
    db.give(dead("n1"))
    assert visible(db) == {"k": ("me", b"mine")}
    (event,) = own_events(db)
    assert event.time > 500


def test_former_self_cannot_take_over(db: Any, claim: Any) -> None:
    """A node at our own address under another name is what we were before the restart."""
    db.give(claim("former", addr=b"\x0a\x00\x00\x64"))
    db.event(attach("former"))
    db.node.db.put(TABLE, NET, "k", b"mine")
    db.event(entry("former", 500, b"old"))
    assert visible(db) == {"k": ("me", b"mine")}


def test_given_up_node_announces_everything_again(db: Any) -> None:
    """Whoever believed us dead has forgotten our attachments and entries."""
    db.node.db.put(TABLE, NET, "k", b"a")
    (before,) = own_events(db)
    announcements(db)
    attached = db.node.db.state.own[NET].time
    db.give(dead("me"))
    db.pass_time(0.9)
    assert own_events(db) == []
    db.pass_time(0.2)
    assert db.node.db.state.own[NET].time > attached
    current = db.node.db.state.store.network(NET)
    assert next(iter(current.values())).time > before.time


# -- bulk sync ----------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [[], [entry("n1", 5)]])
def test_reply_is_valid_for_every_class(db: Any, events: list[TableEvent]) -> None:
    """Not unsolicited, own name, a later time than the request's, the networks asked for."""
    db.syncs()
    db.event(sync("n1", 900, *events, unsolicited=True))
    ((host, reply, held),) = db.syncs()
    assert (host, reply.node, reply.unsolicited, reply.networks) == (
        "10.0.0.1",
        "me",
        False,
        (NET,),
    )
    assert reply.time > 900
    assert [e.key for e in held if isinstance(e, TableEvent)] == [e.key for e in events]


def test_attachments_go_ahead_of_the_entries(db: Any) -> None:
    """Of all owners, ours included, except the target's."""
    db.event(entry("n2", 5), attach("n2", 4), attach("n2", 2, network="elsewhere"))
    db.syncs()
    db.event(sync("n1", 900, unsolicited=True))
    ((_, _, held),) = db.syncs()
    kinds = [type(e) for e in held]
    assert kinds == sorted(kinds, key=lambda kind: kind is TableEvent)
    assert {(e.node, e.network) for e in held if isinstance(e, NetworkEvent)} == {
        ("me", NET),
        ("n2", NET),
    }


def test_attachments_inside_a_bulk_sync_make_its_entries_acceptable(db: Any) -> None:
    """What others of the newest kind send."""
    db.meet("n3")
    db.event(sync("n1", 900, attach("n3", 3), entry("n3", 5)))
    assert visible(db) == {"k": ("n3", b"v")}


def test_replies_are_not_answered(db: Any) -> None:
    """Else two nodes would sync for ever."""
    db.syncs()
    db.event(sync("n1", 900))
    assert db.syncs() == []


def test_networks_not_taken_part_in_are_left_out_of_the_reply(db: Any) -> None:
    """A sync that names none, or only others, gets an empty reply: silence would cost 30 s."""
    db.syncs()
    db.event(sync("n1", 900, unsolicited=True, networks=("elsewhere",)))
    ((_, reply, held),) = db.syncs()
    assert (reply.networks, held, reply.payload.hex()) == ((), [], "0805")


def test_tombstones_travel_with_the_time_they_have_left(db: Any) -> None:
    """Never zero, never more than they had."""
    db.event(entry("n1", 5))
    db.event(gone("n1", 6, residual=100))
    db.pass_time(60.0, step=1.0)
    db.syncs()
    db.event(sync("n2", 900, unsolicited=True))
    ((_, _, held),) = db.syncs()
    (tomb,) = [e for e in held if isinstance(e, TableEvent)]
    assert tomb.action is Action.DELETE
    assert 38 <= tomb.residual <= 41


def test_bulk_sync_within_a_bulk_sync_is_refused(db: Any) -> None:
    """Nesting would be a way to make us work without end."""
    inner = tables.encode(sync("n1", 5, unsolicited=True))
    payload = tables.compound([inner])
    db.syncs()
    db.event(BulkSync(time=9, unsolicited=False, node="n1", networks=(NET,), payload=payload))
    assert db.syncs() == []
    assert db.node.db.refusals.counts == {Refusal.MALFORMED: 1}


def test_chunks_stay_below_the_limit_and_lead_with_the_attachments() -> None:
    """Each part stands for itself; nothing is lost or doubled."""
    attachments = [tables.encode(attach(f"n{i}")) for i in range(5)]
    entries = [tables.encode(entry("n1", i + 1, bytes(90), key=f"k{i}")) for i in range(50)]
    chunker = Chunker(attachments, size=1500)
    parts = [full for event in entries if (full := chunker.add(event))] + [chunker.finish()]
    assert len(parts) > 3
    assert [leaf for part in parts for leaf in tables.unfold_untrusted(part)[5:]] == entries
    for part in parts:
        assert tables.unfold_untrusted(part)[:5] == attachments
        assert len(part) < 2000
    assert Chunker([]).finish() == tables.compound([])


def test_only_the_last_part_of_a_large_sync_asks_for_a_reply(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the peer would answer each part with everything it has."""
    monkeypatch.setattr(Chunker.__init__, "__kwdefaults__", {"size": 500})
    for index in range(20):
        db.event(entry("n1", 10 + index, bytes(60), key=f"k{index}"))
    db.syncs()
    db.node.db.exchange.sync(db.node.db.state.peers.get("n2"), [NET])
    db.collect()
    sent = [message for _, message, _ in db.syncs()]
    assert len(sent) > 3
    assert [m.unsolicited for m in sent] == [False] * (len(sent) - 1) + [True]
    assert len({m.time for m in sent}) == len(sent)


def own_request(bench: Any) -> tuple[str, BulkSync, list[tables.Body]]:
    """Let time pass until the periodic sync asks somebody."""
    bench.syncs()
    for _ in range(400):
        bench.pass_time(0.1)
        for host, message, held in bench.syncs():
            if message.unsolicited:
                return host, message, held
    raise AssertionError("no periodic bulk sync")


@pytest.mark.parametrize("kept", [True, False])
def test_entry_a_peer_lacks_is_published_again(db: Any, kept: bool) -> None:
    """The reply to our sync should hold what we just sent; if not, it was refused there."""
    db.node.db.put(TABLE, NET, "k", b"a")
    host, request, held = own_request(db)
    name = {"10.0.0.1": "n1", "10.0.0.2": "n2"}[host]
    mine = next(e for e in held if isinstance(e, TableEvent))
    attached = db.node.db.state.own[NET].time
    db.event(sync(name, request.time + 1, *([mine] if kept else [])))
    db.pass_time(1.1)
    (current,) = db.node.db.state.store.network(NET).values()
    assert (current.time > mine.time) is not kept
    assert (db.node.db.state.own[NET].time > attached) is not kept


def test_lost_entries_are_not_republished_faster_and_faster(db: Any) -> None:
    """A peer that never keeps anything costs less and less."""
    db.node.db.put(TABLE, NET, "k", b"a")
    versions = set()
    for _ in range(12):
        host, request, _ = own_request(db)
        name = {"10.0.0.1": "n1", "10.0.0.2": "n2"}[host]
        db.event(sync(name, request.time + 1))
        db.pass_time(1.1)
        (current,) = db.node.db.state.store.network(NET).values()
        versions.add(current.time)
    assert 3 <= len(versions) <= 7


def test_reply_that_is_not_later_than_the_request_is_none(db: Any) -> None:
    """Correlation is by time: an old reply does not speak about this request."""
    db.node.db.put(TABLE, NET, "k", b"a")
    host, request, held = own_request(db)
    mine = next(e for e in held if isinstance(e, TableEvent))
    db.event(sync({"10.0.0.1": "n1", "10.0.0.2": "n2"}[host], request.time))
    db.pass_time(1.1)
    (current,) = db.node.db.state.store.network(NET).values()
    assert current.time == mine.time


def test_network_joined_among_peers_is_in_sync_after_the_replies(bench: Any) -> None:
    """Or after a short time-out; only then is relayed. Nothing waits for it."""
    bench.meet("n1", "n2")
    bench.event(attach("n1"), attach("n2"))
    bench.dials.clear()
    bench.node.db.join_network(NET)
    bench.collect()
    requests = {host: message for host, message, _ in bench.syncs()}
    assert set(requests) == {"10.0.0.1", "10.0.0.2"}
    bench.event(entry("n1", 5))
    assert visible(bench) == {"k": ("n1", b"v")}
    assert relayed(bench) == 0
    bench.event(sync("n1", requests["10.0.0.1"].time + 1))
    assert not bench.node.db.state.own[NET].in_sync
    bench.event(sync("n2", requests["10.0.0.2"].time + 1))
    assert bench.node.db.state.own[NET].in_sync


def test_silent_peer_does_not_hold_up_a_join(bench: Any) -> None:
    """Five seconds, not thirty."""
    bench.meet("n1")
    bench.event(attach("n1"))
    bench.node.db.join_network(NET)
    bench.pass_time(5.1)
    assert bench.node.db.state.own[NET].in_sync


# -- push/pull ----------------------------------------------------------------------------------


def state_of(frame: bytes, bench: Any) -> tables.PushPullState:
    """Return how another node is seen, or what a state says."""
    plain = bench.node.decode_stream(frame[:5], frame[5:])
    body = tables.decode_untrusted(plain.user_state)
    assert isinstance(body, tables.PushPullState)
    return body


@pytest.mark.parametrize("join", [False, True])
def test_push_pull_lists_every_attachment(db: Any, join: bool) -> None:
    """Own and others', own ones stamped anew for a joiner, own name and clock."""
    before = db.node.db.state.own[NET].time
    request = wire.PushPull(join=join, nodes=(), user_state=b"")
    state = state_of(db.serve(request), db)
    assert {(e.node, e.network) for e in state.attachments} == {
        ("me", NET),
        ("n1", NET),
        ("n2", NET),
    }
    own_time = next(e.time for e in state.attachments if e.node == "me")
    assert (own_time > before) is join
    assert (state.node, state.time >= own_time) == ("me", True)


def test_attachments_learnt_by_push_pull_lead_to_a_sync(db: Any) -> None:
    """They are not gossiped on, but entries of those peers are fetched soon."""
    db.meet("n3")
    announcements(db)
    db.syncs()
    state = tables.PushPullState(time=9, node="n1", attachments=(attach("n3", 3),))
    db.serve(wire.PushPull(join=False, nodes=(), user_state=tables.encode(state)))
    assert [e for e in announcements(db) if getattr(e, "node", "") == "n3"] == []
    db.pass_time(0.15)
    assert [(host, m.networks) for host, m, _ in db.syncs()] == [("10.0.0.3", (NET,))]


@pytest.mark.parametrize(
    "state", [b"\xff", tables.encode(attach("n1")), b"\x08\x03\x12\x02\xff\xff"]
)
def test_wrong_user_state_is_refused_without_harm(db: Any, state: bytes) -> None:
    """The membership part has been merged by then."""
    db.serve(wire.PushPull(join=False, nodes=(), user_state=state))
    assert db.node.db.refusals.counts == {Refusal.MALFORMED: 1}
