"""An interpreter for recorded conversations of raft members.

A trace is a text file. ``#`` starts a comment, ``> `` a command; the indented lines below a command
are what it must print. The first comment says why the trace exists. Members are numbered; nothing
moves unless a command says so, and disks sync at once unless told otherwise.

============================================  =====================================================
command                                       does
============================================  =====================================================
``group 1 2 3 [learners=4,5]``                start empty members with this configuration
``member 1 log=1,1,2 [term=2] [vote=1]``      start one member with entries of these terms
``  [commit=2] [group=1,2,3]``                (the configuration stands before the first entry)
``newcomer 4``                                start a member with no state that nobody knows yet
``tick 1 10`` / ``tick all 3``                let time pass; member N times out after 9+N ticks
``campaign 1``                                start an election now
``propose 1 x [count=3]``                     propose commands x (or x1, x2, x3)
``change 1 add-learner 4``                    also: promote, update, remove
``transfer 1 [2]``                            hand over leadership
``read 2``                                    ask for a read point
``compact 1 [size=1000]``                     snapshot the state machine (padded to so many bytes)
``deliver [from=1] [to=2] [type=Append]``     deliver the messages that wait now, in order
``  [limit=1]``                               at most so many of them
``repeat ...`` / ``drop ...``                 deliver without taking away / lose; same selection
``settle [quiet]``                            deliver until nothing moves; quiet hides messages
``cut 1|2,3`` / ``cut 1>2`` / ``heal``        partition / one direction only / end of both
``disk 1 slow`` / ``sync 1`` / ``disk 1 ok``  batches wait for ``sync`` / one finishes / at once
``crash 1`` / ``restart 1``                   lose all that was not synced / start from the disk
``forge from=9 to=1 term=3 Heartbeat a=1``    deliver a message nobody sent (integer fields;
                                              entries=2,2 are the terms of an append's entries)
``lost 2 1`` / ``lost all 1``                 member 2 / everybody notices the end of the
                                              connection on which member 1 spoke
``status`` / ``log 1``                        one line per member / the entries of one
============================================  =====================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from manager.raft import messages as m
from manager.raft.config import RaftConfig
from manager.raft.core import RaftCore
from manager.raft.errors import ChangeRefusedError, DroppedError, NotLeaderError
from manager.raft.events import (
    Event,
    LeaderChanged,
    MembershipChanged,
    Refused,
    RoleChanged,
)
from manager.raft.membership import Change, ChangeKind, Member, Membership

MAX_ROUNDS = 200
"""Rounds after which ``settle`` gives up: the members would talk for ever."""


@dataclass(slots=True)
class Step:
    """A piece of a trace: verbatim text, or a command with its output."""

    text: str = ""
    command: str | None = None
    output: list[str] = field(default_factory=list)


def parse(text: str) -> list[Step]:
    """Split a trace into comments and commands."""
    steps: list[Step] = []
    for line in text.splitlines():
        if line.startswith("> "):
            steps.append(Step(command=line[2:].strip()))
        elif line.startswith("  ") and steps and steps[-1].command is not None:
            steps[-1].output.append(line[2:])
        else:
            steps.append(Step(text=line))
    return steps


def render(steps: list[Step]) -> str:
    """Write a trace."""
    lines: list[str] = []
    for step in steps:
        if step.command is None:
            lines.append(step.text)
        else:
            lines.append(f"> {step.command}")
            lines += [f"  {line}".rstrip() for line in step.output]
    return "\n".join(lines) + "\n"


class Staggered(random.Random):
    """Draws election time-outs that make member 1 the first, member 2 the second, ..."""

    def __init__(self, member: int) -> None:
        super().__init__(member)
        self._member = member

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """Return the member's own place in the range."""
        assert stop is not None
        return min(start + self._member - 1, stop - 1)


@dataclass(slots=True)
class Place:
    """One member with its disk."""

    id: int
    stored: m.Stored
    core: RaftCore | None = None
    slow: bool = False
    batch: m.Batch | None = None
    applied: list[bytes] = field(default_factory=list)


class Group:
    """The members of a trace and the messages between them."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}
        self.wire: list[m.Message[Any]] = []
        self.cuts: set[tuple[int, int]] = set()
        self.out: list[str] = []
        self.quiet = False

    def execute(self, command: str) -> list[str]:
        """Run one command and return what it prints."""
        word, *arguments = command.split()
        self.out = []
        self.quiet = False
        COMMANDS[word](self, arguments)
        return self.out

    # Members --------------------------------------------------------------------------------

    def _do_group(self, arguments: list[str]) -> None:
        names, options = _split(arguments)
        voters = [int(name) for name in names]
        learners = _numbers(options.get("learners", ""))
        membership = _membership(voters, learners)
        for raft_id in voters + learners:
            stored = m.Stored(snapshot=m.Snapshot(membership=membership), incarnation=0)
            self._start(Place(id=raft_id, stored=stored))

    def _do_member(self, arguments: list[str]) -> None:
        names, options = _split(arguments)
        raft_id = int(names[0])
        terms = _numbers(options.get("log", ""))
        group = _numbers(options.get("group", "1,2,3"))
        entries = tuple(
            m.Entry(index=i, term=term, data=b"t%d" % term) for i, term in enumerate(terms, 1)
        )
        state = m.DurableState(
            term=int(options.get("term", max(terms, default=0))),
            vote=int(options["vote"]) if "vote" in options else None,
            commit=int(options.get("commit", 0)),
        )
        stored = m.Stored(
            state=state,
            entries=entries,
            snapshot=m.Snapshot(membership=_membership(group, [])),
            incarnation=0,
        )
        self._start(Place(id=raft_id, stored=stored))

    def _do_newcomer(self, arguments: list[str]) -> None:
        self._start(Place(id=int(arguments[0]), stored=m.Stored(incarnation=0)))

    def _start(self, place: Place) -> None:
        self.places[place.id] = place
        place.stored = replace(place.stored, incarnation=place.stored.incarnation + 1)
        config = RaftConfig(
            cluster_id="trace",
            raft_id=place.id,
            node_id=f"n{place.id}",
            addr=f"host{place.id}",
            trailing_entries=0,
        )
        place.core = RaftCore(config, place.stored, Staggered(place.id))
        place.core.events.clear()
        self._pump(place)

    def _do_crash(self, arguments: list[str]) -> None:
        place = self.places[int(arguments[0])]
        place.core = place.batch = None
        place.applied.clear()
        self.wire = [msg for msg in self.wire if place.id != msg.to]

    def _do_restart(self, arguments: list[str]) -> None:
        self._start(self.places[int(arguments[0])])

    def _do_disk(self, arguments: list[str]) -> None:
        place = self.places[int(arguments[0])]
        place.slow = arguments[1] == "slow"
        if not place.slow:
            self._sync(place)

    def _do_sync(self, arguments: list[str]) -> None:
        self._sync(self.places[int(arguments[0])])

    def _sync(self, place: Place) -> None:
        batch, place.batch = place.batch, None
        if batch is not None and place.core is not None:
            self._save(place, batch)
            place.core.advance()
            self._pump(place)

    def _save(self, place: Place, batch: m.Batch) -> None:
        kept = tuple(
            entry
            for entry in place.stored.entries
            if batch.first_index <= entry.index <= batch.keep_to
        )
        place.stored = replace(
            place.stored,
            state=batch.state,
            entries=kept + batch.entries,
            first_index=batch.first_index,
            prev_term=batch.prev_term,
            snapshot=batch.snapshot or place.stored.snapshot,
        )
        what = [f"term {batch.state.term}", f"vote {batch.state.vote or '-'}"]
        if batch.entries:
            what.append(f"entries {_range(batch.entries)}")
        if batch.snapshot:
            what.append(f"snapshot {batch.snapshot.index}")
        self._say(place.id, "synced " + ", ".join(what))

    # Input ----------------------------------------------------------------------------------

    def _do_tick(self, arguments: list[str]) -> None:
        chosen = list(self.places) if arguments[0] == "all" else [int(arguments[0])]
        for _ in range(int(arguments[1]) if len(arguments) > 1 else 1):
            for raft_id in chosen:
                place = self.places[raft_id]
                if place.core is not None:
                    place.core.tick()
                    self._pump(place)

    def _do_campaign(self, arguments: list[str]) -> None:
        self._call(arguments[0], lambda core: core.campaign())

    def _do_propose(self, arguments: list[str]) -> None:
        names, options = _split(arguments)
        count = int(options.get("count", 0))
        words = [f"{names[1]}{i}" for i in range(1, count + 1)] if count else [names[1]]

        def propose(core: RaftCore) -> None:
            for word in words:
                core.propose(word.encode())

        self._call(names[0], propose)

    def _do_change(self, arguments: list[str]) -> None:
        who, kind, raft_id = arguments
        change = Change(
            kind=ChangeKind(kind), raft_id=int(raft_id), node_id=f"n{raft_id}", addr=f"h{raft_id}"
        )
        self._call(who, lambda core: core.change(change))

    def _do_transfer(self, arguments: list[str]) -> None:
        to = int(arguments[1]) if len(arguments) > 1 else None
        self._call(arguments[0], lambda core: core.transfer_leadership(to))

    def _do_read(self, arguments: list[str]) -> None:
        self._call(arguments[0], lambda core: core.request_read())

    def _do_compact(self, arguments: list[str]) -> None:
        names, options = _split(arguments)
        place = self.places[int(names[0])]
        data = b",".join(place.applied).ljust(int(options.get("size", 0)), b"\0")
        self._call(names[0], lambda core: core.compact(core.log.applied, data))

    def _do_forge(self, arguments: list[str]) -> None:
        names, options = _split(arguments)
        body_class = getattr(m, names[0])
        known = {f.name for f in fields(body_class)}
        values: dict[str, Any] = {
            k: int(v) for k, v in options.items() if k in known and k != "entries"
        }
        if "entries" in options:
            values["entries"] = tuple(
                m.Entry(index=i, term=term, data=b"t%d" % term)
                for i, term in enumerate(_numbers(options["entries"]), values["prev_index"] + 1)
            )
        body = body_class(**values)
        message = m.Message(
            cluster=options.get("cluster", "trace"),
            sender=int(options["from"]),
            to=int(options.get("for", options["to"])),
            term=int(options["term"]),
            incarnation=int(options.get("incarnation", 1)),
            body=body,
        )
        self._call(options["to"], lambda core: core.step(message))

    def _do_lost(self, arguments: list[str]) -> None:
        gone = int(arguments[1])
        for raft_id, place in self.places.items():
            wanted = arguments[0] == "all" or raft_id == int(arguments[0])
            if wanted and raft_id != gone and place.core is not None:
                place.core.report_lost(gone)
                self._pump(place)

    def _call(self, raft_id: str, what: Callable[[RaftCore], object]) -> None:
        place = self.places[int(raft_id)]
        assert place.core is not None, f"member {raft_id} is down"
        try:
            what(place.core)
        except (ChangeRefusedError, DroppedError, NotLeaderError) as error:
            reason = getattr(error, "reason", None)
            self._say(place.id, f"{type(error).__name__}: {reason.value if reason else error}")
        self._pump(place)

    # The network ----------------------------------------------------------------------------

    def _do_deliver(self, arguments: list[str]) -> None:
        for message in self._select(arguments, take=True):
            self._deliver(message)

    def _do_repeat(self, arguments: list[str]) -> None:
        for message in self._select(arguments, take=False):
            self._deliver(message)

    def _do_drop(self, arguments: list[str]) -> None:
        for message in self._select(arguments, take=True):
            self.out.append(f"lost {_line(message)}")

    def _do_settle(self, arguments: list[str]) -> None:
        self.quiet = "quiet" in arguments
        for _ in range(MAX_ROUNDS):
            if not self.wire:
                return
            for message in self._select([], take=True):
                self._deliver(message)
        raise AssertionError("the members do not come to rest")

    def _do_cut(self, arguments: list[str]) -> None:
        if ">" in arguments[0]:
            left, right = arguments[0].split(">")
            self.cuts |= {(a, b) for a in _numbers(left) for b in _numbers(right)}
            return
        left, right = arguments[0].split("|")
        for a in _numbers(left):
            for b in _numbers(right):
                self.cuts |= {(a, b), (b, a)}

    def _do_heal(self, _: list[str]) -> None:
        self.cuts.clear()

    def _select(self, arguments: list[str], *, take: bool) -> list[m.Message[Any]]:
        _, options = _split(arguments)
        chosen = [
            message
            for message in self.wire
            if options.get("from", str(message.sender)) == str(message.sender)
            and options.get("to", str(message.to)) == str(message.to)
            and options.get("type", type(message.body).__name__) == type(message.body).__name__
        ][: int(options.get("limit", len(self.wire) + 1))]
        if take:
            taken = {id(message) for message in chosen}
            self.wire = [message for message in self.wire if id(message) not in taken]
        return chosen

    def _deliver(self, message: m.Message[Any]) -> None:
        if (message.sender, message.to) in self.cuts:
            return
        place = self.places.get(message.to)
        if place is None or place.core is None:
            return
        if not self.quiet:
            self.out.append(_line(message))
        place.core.step(message)
        self._pump(place)

    # Output ---------------------------------------------------------------------------------

    def _do_status(self, _: list[str]) -> None:
        for place in self.places.values():
            core = place.core
            if core is None:
                self._say(place.id, "down")
                continue
            self._say(
                place.id,
                f"{core.role.value}, term {core.term}, leader {core.leader or '-'}, "
                f"last {core.log.last_index}/{core.log.last_term}, commit {core.log.commit}, "
                f"applied {core.log.applied}{', removed' if core.removed else ''}",
            )

    def _do_log(self, arguments: list[str]) -> None:
        place = self.places[int(arguments[0])]
        assert place.core is not None
        log = place.core.log
        entries = log.slice(log.first_index, max_bytes=1 << 40, max_entries=1 << 20)
        terms = " ".join(f"{entry.index}/{entry.term}" for entry in entries)
        self._say(place.id, f"snapshot {log.snapshot.index}, entries {terms or '-'}")

    def _pump(self, place: Place) -> None:
        while place.core is not None:
            ready = place.core.ready()
            if ready.idle:
                return
            for event in ready.events:
                self._say(place.id, _event(event))
            self.wire += ready.messages
            if ready.restore is not None:
                place.applied = [w for w in ready.restore.data.rstrip(b"\0").split(b",") if w]
                self._say(place.id, f"restored snapshot {ready.restore.index}")
            if ready.committed:
                place.applied += [e.data for e in ready.committed if e.kind is m.EntryKind.COMMAND]
                self._say(place.id, f"applied {_range(ready.committed)}")
            for read in ready.reads:
                self._say(place.id, f"read point {'none' if read.index is None else read.index}")
            if ready.batch is not None:
                if place.slow:
                    place.batch = ready.batch
                else:
                    self._save(place, ready.batch)
                    place.core.advance()

    def _say(self, raft_id: int, text: str) -> None:
        self.out.append(f"{raft_id}: {text}")


COMMANDS: dict[str, Callable[[Group, list[str]], None]] = {
    name.removeprefix("_do_"): getattr(Group, name)
    for name in dir(Group)
    if name.startswith("_do_")
}


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    names = [item for item in arguments if "=" not in item]
    options = dict(item.split("=", 1) for item in arguments if "=" in item)
    return names, options


def _numbers(text: str) -> list[int]:
    return [int(item) for item in text.split(",") if item]


def _membership(voters: list[int], learners: list[int]) -> Membership:
    members = {
        i: Member(raft_id=i, node_id=f"n{i}", addr=f"host{i}", learner=i in learners)
        for i in voters + learners
    }
    return Membership(members=members)


def _range(entries: tuple[m.Entry, ...]) -> str:
    first, last = entries[0], entries[-1]
    only = f"{first.index}/{first.term}"
    return only if len(entries) == 1 else f"{only}-{last.index}/{last.term}"


def _line(message: m.Message[Any]) -> str:
    body = message.body
    head = f"{message.sender} > {message.to} {type(body).__name__} term {message.term}"
    if isinstance(body, m.Append):
        entries = f" entries {_range(body.entries)}" if body.entries else ""
        return f"{head} after {body.prev_index}/{body.prev_term}{entries} commit {body.commit}"
    if isinstance(body, m.AppendReply) and body.rejected:
        return f"{head} rejects {body.index}, hint {body.hint_index}/{body.hint_term}"
    if isinstance(body, m.AppendReply):
        return f"{head} has {body.index}"
    if isinstance(body, m.SnapshotChunk):
        return f"{head} index {body.index} bytes {body.offset}+{len(body.data)} of {body.total}"
    parts = {f.name: getattr(body, f.name) for f in fields(body)}
    if "context" in parts:
        parts["context"] %= 1 << 32
    return " ".join([head, *(f"{name}={value}" for name, value in parts.items())])


def _event(event: Event) -> str:
    if isinstance(event, Refused):
        return f"refused {event.message} from {event.sender}: {event.reason.value}"
    if isinstance(event, RoleChanged):
        return f"{event.role.value} in term {event.term}"
    if isinstance(event, LeaderChanged):
        return f"leader is {event.leader or 'unknown'}"
    if isinstance(event, MembershipChanged):
        learners = f", learners {_list(event.learners)}" if event.learners else ""
        return f"membership from {event.index} on: voters {_list(event.voters)}{learners}"
    values = ", ".join(f"{f.name} {getattr(event, f.name)}" for f in fields(event))
    return f"{type(event).__name__}: {values}"


def _list(numbers: tuple[int, ...]) -> str:
    return " ".join(str(number) for number in numbers) or "-"
