"""The membership protocol's rules, one node against a hand that writes messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.gossip.refusal import Refusal
from agent.gossip.swim import seal, wire, wrappers
from agent.gossip.swim.core import MAX_INBOX
from agent.gossip.swim.probing import MAX_RELAYS
from agent.gossip.swim.wire import State

Claim = Callable[..., wire.Alive]


def state(bench: Any, name: str) -> State | None:
    """Return the state of a member, if known."""
    found = bench.node.swim.members.get(name)
    return found.state if found else None


def incarnation(bench: Any, name: str) -> int:
    """Return the incarnation of a member."""
    return int(bench.node.swim.members.get(name).incarnation)


def refused(bench: Any, cause: Refusal) -> int:
    """Return how often something was refused."""
    return int(bench.node.swim.refusals.counts.get(cause, 0))


def suspect(name: str, number: int = 1, origin: str = "x") -> wire.Suspect:
    """Return an accusation."""
    return wire.Suspect(incarnation=number, node=name, origin=origin)


def dead(name: str, number: int = 1, origin: str = "x") -> wire.Dead:
    """Return a death notice."""
    return wire.Dead(incarnation=number, node=name, origin=origin)


def node_state(name: str, held: State, number: int = 1, **changes: Any) -> wire.NodeState:
    """Return a node as push/pull carries it."""
    fields = {
        "addr": b"\x0a\x00\x00\x01", "port": 7946, "meta": b"",
        "versions": bytes((1, 5, 2, 0, 0, 0)), **changes,
    }  # fmt: skip
    return wire.NodeState(name=name, incarnation=number, state=held, **fields)


def exchange(bench: Any, *nodes: wire.NodeState) -> wire.PushPull:
    """Push a state and return what is pulled."""
    frame = bench.serve(wire.PushPull(join=False, nodes=nodes, user_state=b""))
    plain = seal.open_frame_untrusted(frame[:5], frame[5:], bench.keyring)
    bench.collect()
    reply = wire.decode_stream_untrusted(plain)
    assert isinstance(reply, wire.PushPull)
    return reply


# -- probes -----------------------------------------------------------------------------------


def test_ping_is_answered_before_any_other_work(bench: Any) -> None:
    """The ack is out while the rest of the datagram still waits."""
    parts = [
        wire.encode_packet(suspect("n1")),
        wire.encode_packet(wire.Ping(seq=9, node="me")),
    ]
    data = seal.seal_datagram(wrappers.compound(parts), bench.keyring, bytes(12))
    bench.node.receive_datagram(data, "10.0.0.9", 7946, bench.now)
    bench.collect()
    assert bench.take_sent(wire.Ack) == [("10.0.0.9", wire.Ack(seq=9))]
    assert len(bench.node.swim._inbox) == 1


def test_ping_for_another_name_is_not_answered(bench: Any) -> None:
    """Neither as a datagram nor on a stream; a nameless one is for whoever gets it."""
    ping = wire.Ping(seq=9, node="former-me")
    bench.give(ping)
    assert not bench.take_sent(wire.Ack)
    assert bench.serve(ping) is None
    assert refused(bench, Refusal.WRONG_NODE) == 2
    bench.give(wire.Ping(seq=9, node=""))
    assert bench.take_sent(wire.Ack)


def test_ack_goes_where_the_ping_says(bench: Any) -> None:
    """To the source address when both parts are given, else back to the sender."""
    ping = wire.Ping(seq=9, node="me", source_addr=b"\x0a\x00\x00\x05", source_port=7946)
    bench.give(ping, source="10.0.0.9")
    assert bench.take_sent(wire.Ack)[0][0] == "10.0.0.5"
    bench.give(wire.Ping(seq=9, node="me", source_addr=b"\x0a\x00\x00\x05"), source="10.0.0.9")
    assert bench.take_sent(wire.Ack)[0][0] == "10.0.0.9"


def test_stream_ping_is_answered_on_the_stream(bench: Any) -> None:
    """The fallback probe of a peer whose datagrams are lost."""
    frame = bench.serve(wire.Ping(seq=77, node="me"))
    plain = seal.open_frame_untrusted(frame[:5], frame[5:], bench.keyring)
    assert wire.decode_stream_untrusted(plain) == wire.Ack(seq=77)


def test_relay_passes_the_ack_on_under_the_requesters_number(bench: Any) -> None:
    """A ping of our own goes to the target, its ack back to the requester."""
    request = wire.IndirectPing(seq=5, target=b"\x0a\x00\x00\x02", port=7946, node="n2", nack=True)
    bench.give(request, source="10.0.0.9")
    ((host, ping),) = bench.take_sent(wire.Ping)
    assert (host, ping.node) == ("10.0.0.2", "n2")
    bench.give(wire.Ack(seq=ping.seq), source="10.0.0.2")
    assert bench.take_sent(wire.Ack) == [("10.0.0.9", wire.Ack(seq=5))]
    bench.pass_time(1.0)
    assert not bench.take_sent(wire.Nack)


@pytest.mark.parametrize("wants_nack", [True, False])
def test_relay_without_answer_says_so_if_asked(bench: Any, wants_nack: bool) -> None:
    """After half a second the requester learns that the relay is well."""
    request = wire.IndirectPing(
        seq=5, target=b"\x0a\x00\x00\x02", port=7946, node="n2", nack=wants_nack
    )
    bench.give(request, source="10.0.0.9")
    bench.pass_time(0.45)
    assert not bench.take_sent(wire.Nack)
    bench.pass_time(0.1)
    assert bench.take_sent(wire.Nack) == [("10.0.0.9", wire.Nack(seq=5))] * wants_nack


def test_relays_are_bounded(bench: Any) -> None:
    """A flood of indirect pings does not grow anything without end."""
    request = wire.IndirectPing(seq=5, target=b"\x0a\x00\x00\x02", port=7946, node="n2", nack=True)
    for _ in range(MAX_RELAYS // 8 + 1):
        bench.give(*[request] * 8)
    assert refused(bench, Refusal.RELAYS_FULL) == 8


def probe_of(bench: Any, name: str) -> Any:
    """Let time pass until the node probes somebody; all others answer."""
    for _ in range(100):
        bench.pass_time(0.05)
        for _, ping in bench.take_sent(wire.Ping):
            if ping.node == name:
                return ping
            bench.give(wire.Ack(seq=ping.seq))
    raise AssertionError(f"{name} was never probed")


def test_silent_member_is_probed_over_others_and_streams_then_suspected(bench: Any) -> None:
    """Direct, then three helpers and a stream at once, then suspicion."""
    bench.meet("n1", "n2", "n3", "n4", "n5")
    bench.dials.clear()
    ping = probe_of(bench, "n1")
    assert (ping.source_addr, ping.source_port) == (b"\x0a\x00\x00\x64", 7946)
    bench.pass_time(0.55)
    helpers = [m for _, m in bench.take_sent(wire.IndirectPing) if m.seq == ping.seq]
    assert len(helpers) == 3
    assert {(m.node, m.target, m.nack) for m in helpers} == {("n1", b"\x0a\x00\x00\x01", True)}
    assert [m for _, m in bench.dials if isinstance(m, wire.Ping) and m.seq == ping.seq]
    assert state(bench, "n1") is State.ALIVE
    bench.pass_time(0.5)
    assert state(bench, "n1") is State.SUSPECT
    assert bench.queued("n1") == suspect("n1", origin="me")
    assert bench.node.swim.awareness.score == 3  # none of three nacks came


def test_nacks_keep_the_own_health(bench: Any) -> None:
    """Helpers that answer prove that the fault is not here."""
    bench.meet("n1", "n2", "n3", "n4")
    ping = probe_of(bench, "n1")
    bench.pass_time(0.55)
    for _, message in bench.take_sent(wire.IndirectPing):
        if message.seq == ping.seq:
            bench.give(wire.Nack(seq=ping.seq))
    before = bench.node.swim.awareness.score
    bench.pass_time(0.45)
    assert state(bench, "n1") is State.SUSPECT
    assert bench.node.swim.awareness.score == before


@pytest.mark.parametrize("late", [False, True])
def test_answered_member_stays_alive(bench: Any, late: bool) -> None:
    """A direct ack, or a relayed one within the interval."""
    bench.meet("n1", "n2", "n3", "n4")
    ping = probe_of(bench, "n1")
    if late:
        bench.pass_time(0.6)
    bench.give(wire.Ack(seq=ping.seq))
    bench.pass_time(0.6)
    assert state(bench, "n1") is State.ALIVE


def test_stream_answer_alone_saves_and_warns(bench: Any) -> None:
    """Datagrams are lost between two nodes that live: nobody is suspected for that."""
    bench.meet("n1")
    ping = probe_of(bench, "n1")
    bench.pass_time(0.55)
    dial = next(d for d, m in bench.dials if isinstance(m, wire.Ping) and m.seq == ping.seq)
    bench.reply(dial, wire.Ack(seq=ping.seq))
    bench.pass_time(0.3)
    assert state(bench, "n1") is State.ALIVE
    assert bench.node.swim.awareness.score == 0


def test_refutation_during_a_probe_outdates_its_verdict(bench: Any, claim: Claim) -> None:
    """A probe that began before the member proved its life does not condemn it."""
    bench.meet("n1")
    probe_of(bench, "n1")
    bench.give(claim("n1", incarnation=2))
    bench.pass_time(1.1)  # the probe has ended, the next one has not
    assert state(bench, "n1") is State.ALIVE


def test_suspect_is_told_with_the_next_probe(bench: Any) -> None:
    """A probe of a suspect carries the accusation, so that it can be refuted at once."""
    bench.meet("n1", "n2", "n3", "n4")
    bench.give(suspect("n1"))
    bench.take_sent(wire.Suspect)
    for _ in range(100):
        bench.pass_time(0.05)
        accusations = [(h, m) for h, m in bench.take_sent(wire.Suspect) if m.origin == "me"]
        if accusations:
            assert accusations[0][0] == "10.0.0.1"
            return
    raise AssertionError("the suspect was never told")


# -- membership rules ---------------------------------------------------------------------------


def test_unknown_alive_is_taken_in_and_passed_on(bench: Any, claim: Claim) -> None:
    """With incarnation 1; 0 is what nobody is."""
    bench.give(claim("n1", incarnation=0))
    assert state(bench, "n1") is None
    bench.give(claim("n1"))
    assert state(bench, "n1") is State.ALIVE
    assert bench.queued("n1") == claim("n1")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"addr": b""}, Refusal.ADDRESS),
        ({"addr": b"\x0a\x00\x00\x01\x05"}, Refusal.ADDRESS),
        ({"port": 0}, Refusal.ADDRESS),
        ({"versions": b""}, Refusal.VERSION),
        ({"versions": b"\x01\x05"}, Refusal.VERSION),
        ({"versions": bytes((7, 9, 8, 0, 0, 0))}, Refusal.VERSION),
    ],
)
def test_unusable_claims_are_refused(
    bench: Any, claim: Claim, change: dict[str, Any], cause: Refusal
) -> None:
    """No address, or versions that would cost everybody the push/pull: not taken in."""
    bench.give(claim("n1", **change))
    assert state(bench, "n1") is None
    assert refused(bench, cause) == 1


@pytest.mark.parametrize(
    ("message", "wanted", "news"),
    [
        (suspect("n1", 2), State.ALIVE, False),
        (suspect("n1", 3), State.SUSPECT, True),
        (suspect("n1", 9), State.SUSPECT, True),
        (dead("n1", 2), State.ALIVE, False),
        (dead("n1", 3), State.DEAD, True),
        (dead("n1", 3, "n1"), State.LEFT, True),
        (suspect("nobody", 3), State.ALIVE, False),
        (dead("nobody", 3), State.ALIVE, False),
    ],
)
def test_accusations_count_from_the_known_incarnation_on(
    bench: Any, message: Any, wanted: State, news: bool
) -> None:
    """Older ones, and ones about strangers, are ignored; news is passed on."""
    bench.meet("n1", incarnation=3)
    bench.node.swim.queue.discard("n1")
    bench.give(message)
    assert state(bench, "n1") is wanted
    assert (bench.queued("n1") == message) is news


@pytest.mark.parametrize("before", [suspect("n1", 3), dead("n1", 3), dead("n1", 3, "n1")])
@pytest.mark.parametrize(("number", "revives"), [(2, False), (3, False), (4, True)])
def test_only_a_higher_incarnation_revives(
    bench: Any, claim: Claim, before: Any, number: int, revives: bool
) -> None:
    """Suspect, dead or left: the node itself has to have spoken since."""
    bench.meet("n1", incarnation=3)
    bench.give(before)
    held = state(bench, "n1")
    bench.give(claim("n1", incarnation=number))
    assert state(bench, "n1") is (State.ALIVE if revives else held)
    bench.pass_time(30.0)
    if revives and isinstance(before, wire.Suspect):
        assert incarnation(bench, "n1") == 4  # the old suspicion did not run on


@pytest.mark.parametrize(
    ("before", "moves"),
    [(None, False), (suspect("n1"), False), (dead("n1"), False), (dead("n1", 1, "n1"), True)],
)
def test_known_name_at_another_address(bench: Any, claim: Claim, before: Any, moves: bool) -> None:
    """Accepted only from a node that had left; otherwise a conflict."""
    bench.meet("n1")
    if before:
        bench.give(before)
    bench.give(claim("n1", addr=b"\x0a\x00\x00\x07", incarnation=5))
    host = bench.node.swim.members.get("n1").host
    assert host == ("10.0.0.7" if moves else "10.0.0.1")
    assert refused(bench, Refusal.ADDRESS_CONFLICT) == (not moves)


def test_confirmations_shorten_and_are_passed_on_while_they_count(bench: Any) -> None:
    """Three accusers end it after 4 s instead of 24; the fourth is not even news."""
    bench.meet("n1", "n2", "n3", "n4", "n5", "n6")
    for origin in ("n2", "n2", "n3", "n4"):
        bench.give(suspect("n1", origin=origin))
    bench.give(suspect("n1", origin="n5"))
    assert bench.queued("n1") == suspect("n1", origin="n4")
    for _ in range(60):  # keep everybody else alive
        bench.pass_time(0.05)
        for _, ping in bench.take_sent(wire.Ping):
            if ping.node != "n1":
                bench.give(wire.Ack(seq=ping.seq))
    assert state(bench, "n1") is State.SUSPECT
    bench.pass_time(1.2)
    assert state(bench, "n1") is State.DEAD
    assert bench.queued("n1") == dead("n1", origin="me")


@pytest.mark.parametrize("accusers", [["n2"], ["n2", "n3"], ["n2", "n3", "n4"]])
def test_a_refutation_ends_every_timer_of_the_suspicion(
    bench: Any, claim: Claim, accusers: list[str]
) -> None:
    """However often it was confirmed: who has refuted does not die of what was said before."""
    bench.answering = True
    bench.meet("n1", "n2", "n3", "n4", "n5", "n6")
    for origin in accusers:
        bench.give(suspect("n1", origin=origin))
        bench.pass_time(0.5)
    bench.give(claim("n1", incarnation=2))
    for _ in range(30):
        bench.pass_time(1.0)
        assert state(bench, "n1") is State.ALIVE


# -- refutation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accusation", "wanted"),
    [
        (suspect("me", 0), None),
        (suspect("me", 1), 2),
        (suspect("me", 41), 42),
        (dead("me", 0), None),
        (dead("me", 1), 2),
        (dead("me", 41), 42),
        (dead("me", 41, "me"), 42),
    ],
)
def test_refutation(bench: Any, accusation: Any, wanted: int | None) -> None:
    """Outbid at once, whoever accuses, even in our own name; older accusations mean nothing."""
    bench.node.swim.queue.discard("me")
    bench.give(accusation)
    answer = bench.queued("me")
    assert (answer.incarnation if answer else None) == wanted
    assert state(bench, "me") is State.ALIVE
    assert bench.node.swim.awareness.score == (wanted is not None)


@pytest.mark.parametrize(
    ("number", "change", "wanted"),
    [
        (0, {}, None),
        (1, {}, None),
        (1, {"versions": bytes((1, 5, 3, 0, 0, 0))}, 2),
        (2, {}, 3),
        (9, {}, 10),
        (9, {"addr": b"\x0a\x00\x00\x07"}, None),
    ],
)
def test_alive_about_self(
    bench: Any, claim: Claim, number: int, change: dict[str, Any], wanted: int | None
) -> None:
    """An earlier life's claim is outbid; another node of the same name is not fought."""
    bench.node.swim.queue.discard("me")
    bench.give(claim("me", **{"addr": b"\x0a\x00\x00\x64", "incarnation": number, **change}))
    answer = bench.queued("me")
    assert (answer.incarnation if answer else None) == wanted


@pytest.mark.parametrize("held", [State.SUSPECT, State.DEAD, State.LEFT])
def test_accusations_in_a_push_pull_are_refuted(bench: Any, held: State) -> None:
    """A peer that remembers us as gone hears better, wherever it says so."""
    exchange(bench, node_state("me", held, 6, addr=b"\x0a\x00\x00\x64"))
    assert bench.queued("me").incarnation == 7


def test_the_highest_incarnation_cannot_be_outbid(bench: Any) -> None:
    """Refused and counted; nothing overflows."""
    bench.give(suspect("me", 0xFFFFFFFF))
    assert incarnation(bench, "me") == 1
    assert refused(bench, Refusal.INCARNATION) == 1


# -- push/pull ----------------------------------------------------------------------------------


def test_push_pull_answers_with_the_full_state_and_merges(bench: Any) -> None:
    """Ourselves included; the reply is what was known before."""
    bench.meet("n1")
    reply = exchange(
        bench,
        node_state("n2", State.ALIVE, addr=b"\x0a\x00\x00\x02"),
        node_state("n1", State.LEFT),
    )
    assert {node.name: node.state for node in reply.nodes} == {
        "me": State.ALIVE,
        "n1": State.ALIVE,
    }
    assert state(bench, "n2") is State.ALIVE
    assert state(bench, "n1") is State.LEFT


@pytest.mark.parametrize("held", [State.DEAD, State.SUSPECT])
def test_others_dead_are_only_suspects_here(bench: Any, held: State) -> None:
    """Death by hearsay is not taken over."""
    bench.meet("n1", "n2", "n3", "n4")
    exchange(bench, node_state("n1", held))
    assert state(bench, "n1") is State.SUSPECT
    assert bench.queued("n1") == suspect("n1", origin="me")


def test_one_misfit_does_not_block_the_exchange(bench: Any) -> None:
    """A node of foreign versions is skipped, the others are merged."""
    exchange(
        bench,
        node_state("bad", State.ALIVE, versions=bytes((9, 9, 9, 0, 0, 0))),
        node_state("short", State.ALIVE, versions=b"\x01"),
        node_state("n1", State.ALIVE),
    )
    assert state(bench, "n1") is State.ALIVE
    assert state(bench, "bad") is None
    assert refused(bench, Refusal.VERSION) == 2


@pytest.mark.parametrize(
    ("members", "pause"),
    [(2, 30.0), (32, 30.0), (33, 60.0), (64, 60.0), (100, 90.0), (1000, 180.0)],
)
def test_full_exchanges_are_rarer_the_larger_the_cluster(
    bench: Any, claim: Claim, members: int, pause: float
) -> None:
    """Each names every node, so all of them together would grow with the square."""
    for index in range(members - 1):
        bench.give(claim(f"n{index}", addr=(0x0A010000 + index).to_bytes(4, "big")))
    assert bench.node.swim._push_pull_pause() == pause
    for _, _, timer in bench.node.timers._heap:
        timer.cancel()
    bench.node.swim._push_pull_tick()
    bench.pass_time(pause - 1.0, step=1.0)
    assert [type(message) for _, message in bench.dials] == [wire.PushPull]
    bench.pass_time(2.0, step=1.0)
    assert [type(message) for _, message in bench.dials] == [wire.PushPull] * 2


# -- gossip -------------------------------------------------------------------------------------


def test_the_dead_hear_of_it_for_half_a_minute(bench: Any) -> None:
    """Whoever is taken for dead and is not must hear so to refute it; later it is left in peace."""
    bench.answering = True
    bench.meet("n1", "n2")
    bench.pass_time(3.0)
    bench.give(dead("n1"))
    bench.take_sent(wire.Dead)
    bench.pass_time(2.0)
    assert "10.0.0.1" in {host for host, _ in bench.take_sent(wire.Dead)}
    bench.pass_time(40.0)
    bench.take_sent(wire.Dead)
    bench.take_sent(wire.Alive)
    bench.meet("n3")
    bench.pass_time(2.0)
    assert {host for host, _ in bench.take_sent(wire.Alive)} <= {"10.0.0.2", "10.0.0.3"}


def test_whoever_left_hears_nothing_more(bench: Any) -> None:
    """Gossip to a node that said goodbye would be for nobody."""
    bench.answering = True
    bench.meet("n1", "n2")
    bench.pass_time(3.0)
    bench.give(dead("n1", origin="n1"))
    bench.take_sent(wire.Dead)
    bench.pass_time(2.0)
    assert {host for host, _ in bench.take_sent(wire.Dead)} == {"10.0.0.2"}


# -- leaving, floods, budget --------------------------------------------------------------------


def test_leaving_is_said_and_not_taken_back(bench: Any, claim: Claim) -> None:
    """Dead from itself; probes are answered on, accusations no longer refuted."""
    bench.meet("n1", "n2")
    bench.node.swim.leave()
    assert bench.queued("me") == dead("me", 1, "me")
    assert not bench.node.swim.leave_spread
    bench.give(dead("me", 5), claim("me", addr=b"\x0a\x00\x00\x64", incarnation=9))
    bench.give(suspect("me", 9))
    assert state(bench, "me") is State.LEFT
    assert bench.queued("me") == dead("me", 1, "me")
    bench.give(wire.Ping(seq=1, node="me"))
    assert bench.take_sent(wire.Ack)
    bench.pass_time(2.0)
    assert bench.node.swim.leave_spread


def test_alone_there_is_nobody_to_tell(bench: Any) -> None:
    """Leaving an empty cluster is done at once."""
    bench.node.swim.leave()
    assert bench.node.swim.leave_spread


def test_waiting_messages_are_bounded(bench: Any) -> None:
    """A flood costs messages, not memory; probes are still answered."""
    part = wire.encode_packet(suspect("n1"))
    for _ in range(MAX_INBOX // 200 + 1):
        data = seal.seal_datagram(wrappers.compound([part] * 200), bench.keyring, bench.nonce())
        bench.node.receive_datagram(data, "10.0.0.9", 7946, bench.now)
    assert refused(bench, Refusal.OVERFLOW) == 200 - MAX_INBOX % 200
    ping = wire.encode_packet(wire.Ping(seq=9, node="me"))
    sealed = seal.seal_datagram(ping, bench.keyring, bytes(12))
    bench.node.receive_datagram(sealed, "10.0.0.9", 7946, bench.now)
    bench.collect()
    assert bench.take_sent(wire.Ack)


def test_datagrams_stay_within_the_packet_size(bench: Any, claim: Claim) -> None:
    """However much waits to be piggybacked."""
    for index in range(200):
        bench.give(claim(f"{index:050d}", addr=bytes((10, 1, 0, index + 1))))
    sizes = []
    for _ in range(100):
        bench.now += 0.05
        bench.node.tick(bench.now)
        sizes += [
            len(o.data)
            for o in bench.node.take_outputs()
            if hasattr(o, "data") and isinstance(o.data, bytes)
        ]
    assert 1200 < max(sizes) <= 1400


@pytest.mark.parametrize("plain", [b"", b"\x63", b"\x04", b"\x04\xc1", b"\x07\x05", b"\x00\x01"])
def test_malformed_input_is_counted_and_forgotten(bench: Any, plain: bytes) -> None:
    """Opened but nonsense: the node goes on."""
    bench.give_raw(plain)
    assert refused(bench, Refusal.MALFORMED) == 1


def test_undecryptable_input_is_counted(bench: Any) -> None:
    """Plain text, and text sealed for others."""
    bench.node.receive_datagram(b"\x00\x81\xa5SeqNo\x01", "10.0.0.9", 7946, bench.now)
    bench.node.receive_datagram(bytes(60), "10.0.0.9", 7946, bench.now)
    assert refused(bench, Refusal.UNDECRYPTABLE) == 2
