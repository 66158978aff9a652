"""One member of a raft group as a state machine without I/O, clock or randomness of its own.

The driver feeds messages (``step``) and time (``tick``), and carries out what ``ready`` returns;
once the batch in it is durable it calls ``advance``. Equal inputs and an equal random generator
give equal outputs. Names tell what a function does: ``become_*`` changes the role, ``handle_*``
takes one kind of message, ``maybe_*`` may decline, ``send`` and ``broadcast_*`` queue output.

This module holds the state and the contract; what becomes of a message lies in ``intake``, what a
member does in ``election``, ``leader``, ``follower`` and ``asking``. Sources: Ongaro and Ousterhout, "In Search of an Understandable Consensus
Algorithm" (the paper), and Ongaro's dissertation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from manager.raft import asking, election, follower, handover, intake, leader
from manager.raft.config import (
    MAX_ENTRY_BYTES,
    MAX_UNCOMMITTED_BYTES,
    RaftConfig,
)
from manager.raft.errors import DroppedError, NotLeaderError
from manager.raft.events import (
    Event,
    LeaderChanged,
    MembershipChanged,
    Reason,
    Refused,
    Role,
    RoleChanged,
    WasRemoved,
)
from manager.raft.log import Log
from manager.raft.membership import Change, Member, Membership
from manager.raft.messages import (
    ENTRY_OVERHEAD_BYTES,
    Batch,
    Body,
    DurableState,
    Entry,
    EntryKind,
    Message,
    ReadResult,
    Ready,
    Snapshot,
    Stored,
)
from manager.raft.outbox import Outbox
from manager.raft.progress import Progress
from manager.raft.reads import Reads
from manager.raft.wire import encode_membership
from swarm.errors import InvalidArgumentError, InvariantError

MAX_APPLY_ENTRIES = 1024
"""Entries handed out for applying at once, so that a driver can breathe in between."""

TRANSITIONS: frozenset[tuple[Role, Role]] = frozenset(
    {
        (Role.FOLLOWER, Role.FOLLOWER),
        (Role.FOLLOWER, Role.PRE_CANDIDATE),
        (Role.FOLLOWER, Role.CANDIDATE),  # told to by the leader that hands over
        (Role.PRE_CANDIDATE, Role.PRE_CANDIDATE),
        (Role.PRE_CANDIDATE, Role.CANDIDATE),
        (Role.PRE_CANDIDATE, Role.FOLLOWER),
        (Role.CANDIDATE, Role.PRE_CANDIDATE),
        (Role.CANDIDATE, Role.LEADER),
        (Role.CANDIDATE, Role.FOLLOWER),
        (Role.LEADER, Role.FOLLOWER),
    }
)

TURN_TICKS = 2
"""Between the campaigns of two members that lost the same leader: an election fits in."""

IDLE = Ready()
"""What ``ready`` returns when there is nothing to do."""


class RaftCore:
    """See the module. Public: the methods of the contract, ``log`` and the fields to read."""

    __slots__ = (
        "_durable",
        "_outbox",
        "_outstanding",
        "_restore",
        "_restore_durable",
        "_unsaved_snapshot",
        "config",
        "doubted",
        "elapsed",
        "events",
        "id",
        "incarnation",
        "incarnations",
        "incoming",
        "leader",
        "log",
        "next_context",
        "peers",
        "read_results",
        "reads",
        "removed",
        "rng",
        "role",
        "term",
        "ticks",
        "timeout",
        "transfer",
        "uncommitted",
        "vote",
        "votes",
    )

    def __init__(self, config: RaftConfig, stored: Stored, rng: random.Random) -> None:
        self.config = config
        self.id = config.raft_id
        self.rng = rng
        self.incarnation = stored.incarnation
        """Grows with every start; in every message."""
        self.incarnations: dict[int, int] = {}
        """Highest incarnation seen of each member; messages of an earlier life are refused."""
        self.log = Log(stored)
        self.term = stored.state.term
        """Highest term seen; never falls."""
        self.vote = stored.state.vote
        """Who got this member's vote in ``term``; cleared by a new term only."""
        self.role = Role.FOLLOWER
        self.leader: int | None = None
        """Leader of ``term``, once it was heard."""
        self.ticks = 0
        self.elapsed = 0
        """Ticks since the leader was heard or a campaign began; on a leader, since the last
        quorum check."""
        self.timeout = 0
        """Ticks of silence until the next campaign: E to 2E-1, drawn anew for each wait."""
        self.doubted = False
        """The leader may be dead: its connection ended, and nothing was heard of it since."""
        self.votes: dict[int, bool] = {}
        """Answers to the current campaign."""
        self.peers: dict[int, Progress] = {}
        """Leader: every member of the configuration in force, itself included if in it."""
        self.transfer: handover.Transfer | None = None
        """Leader: a handover under way; proposals are refused meanwhile."""
        self.uncommitted = 0
        """Leader: bytes of entries beyond the commit index."""
        self.reads = Reads()
        self.read_results: list[ReadResult] = []
        self.incoming: follower.Incoming | None = None
        """Follower: a snapshot being assembled."""
        self.removed = False
        """This member was removed from the group for good; it never campaigns again."""
        self.events: list[Event] = []
        self._outbox = Outbox()
        self._outstanding: Batch | None = None
        """The batch on its way to the disk."""
        self._durable = (self.term, self.vote)
        """(term, vote) on disk."""
        self._unsaved_snapshot: Snapshot | None = None
        """Goes into the next batch."""
        self._restore: Snapshot | None = None
        """A leader's snapshot the state machine has not been given yet; nothing is applied
        meanwhile."""
        self._restore_durable = False
        self.next_context = self.incarnation << 32
        """Number of this member's last read; differs from those of its earlier lives."""
        self._start(stored)

    # The contract ---------------------------------------------------------------------------

    def step(self, message: Message[Any]) -> None:
        """Take one message from the network. Never raises for what a peer sent."""
        intake.step(self, message)

    def tick(self) -> None:
        """Let one tick pass."""
        self.ticks += 1
        self.elapsed += 1
        asking.age(self)
        if self.role is Role.LEADER:
            leader.tick(self)
        elif self.elapsed >= self.timeout:
            if self.electable:
                election.campaign_pre_vote(self)
            else:
                self.elapsed = 0
                self.set_leader(None)

    def ready(self) -> Ready:
        """Return all work there is; may be called at any time, also while a batch is outstanding."""
        if self.role is Role.LEADER:
            leader.flush(self)
        batch = self._take_batch()
        restore: Snapshot | None = None
        committed: tuple[Entry, ...] = ()
        if self._restore is None:
            committed = self.log.take_committed(MAX_APPLY_ENTRIES)
        elif self._restore_durable:
            restore, self._restore = self._restore, None
            self._restore_durable = False
            self.log.applied = restore.index
            committed = self.log.take_committed(MAX_APPLY_ENTRIES)
        idle = not (self._outbox.leaving or self.read_results or self.events)
        if idle and batch is None and restore is None and not committed:
            return IDLE
        ready = Ready(
            messages=self._outbox.take(),
            batch=batch,
            restore=restore,
            committed=committed,
            reads=tuple(self.read_results),
            events=tuple(self.events),
        )
        self.read_results.clear()
        self.events.clear()
        return ready

    def advance(self) -> None:
        """The outstanding batch is durable: release what waited for it."""
        batch = self._outstanding
        if batch is None:
            raise InvariantError("advance() without an outstanding batch.")
        self._outstanding = None
        self.log.saved = self.log.saving
        self._durable = (batch.state.term, batch.state.vote)
        if self._restore is not None and batch.snapshot is self._restore:
            self._restore_durable = True
        self._release(self._outbox.written())
        if self.role is Role.LEADER:
            leader.note_saved(self)

    def propose(self, data: bytes) -> tuple[int, int]:
        """Append a command to the leader's log and return its (index, term).

        Raises:
            NotLeaderError: this member does not lead, or is handing over.
            DroppedError: too much is uncommitted already.
            InvalidArgumentError: larger than MAX_ENTRY_BYTES.
        """
        if self.role is not Role.LEADER or self.transfer is not None:
            raise self.not_leader()
        if len(data) > MAX_ENTRY_BYTES:
            raise InvalidArgumentError(
                f"A change of {len(data)} bytes exceeds the limit of {MAX_ENTRY_BYTES} bytes."
            )
        if self.uncommitted + len(data) + ENTRY_OVERHEAD_BYTES > MAX_UNCOMMITTED_BYTES:
            raise DroppedError("Too many changes wait for a majority of managers; try again.")
        return leader.append(self, EntryKind.COMMAND, data), self.term

    def change(self, change: Change) -> tuple[int, int]:
        """Append one membership step and return its (index, term).

        Raises:
            NotLeaderError: this member does not lead, or is handing over.
            ChangeRefusedError: not now, or not ever; see its reason.
        """
        if self.role is not Role.LEADER:
            raise self.not_leader()
        membership = leader.checked_change(self, change)
        return leader.append(self, EntryKind.MEMBERSHIP, encode_membership(membership)), self.term

    def transfer_leadership(self, to: int | None = None) -> int:
        """Start handing over to ``to`` (default: the most complete follower) and return its id.

        Raises:
            NotLeaderError: this member does not lead.
            ChangeRefusedError: UNKNOWN, NOT_VOTER, TRANSFERRING or NO_TARGET.
        """
        if self.role is not Role.LEADER:
            raise self.not_leader()
        return handover.start(self, to)

    def request_read(self) -> int:
        """Ask for a linearisable read point; the answer comes in ``Ready.reads``.

        Raises:
            DroppedError: too many reads wait already.
        """
        return asking.ask(self)

    def campaign(self) -> None:
        """Start an election now, without waiting for the time-out (a group of one does)."""
        if self.role is not Role.LEADER and self.electable:
            election.campaign_pre_vote(self)

    def compact(self, index: int, data: bytes) -> None:
        """Replace the log's front by a snapshot of the state machine at ``index`` (applied)."""
        if self._restore is None and index > self.log.snapshot.index:
            self._unsaved_snapshot = self.log.compact(
                index, data, trailing=self.config.trailing_entries
            )

    def report_lost(self, raft_id: int) -> None:
        """The connection on which this member spoke has ended; of a leader that may mean its death.

        A follower then waits a part of an election time instead of a whole one. A leader that lives
        is heard again before that; and one that others still hear is not deposed, because they
        refuse the pre-vote. All followers learn of a death at the same moment, so they take turns.
        """
        if self.role is Role.FOLLOWER and raft_id == self.leader and not self.doubted:
            self.doubted = True
            rank = sum(voter < self.id for voter in self.membership.voters - {raft_id})
            patience = max(self.config.election_ticks // 3, self.config.heartbeat_ticks + 1)
            self.timeout = min(self.timeout, self.elapsed + patience + TURN_TICKS * rank)

    def report_unreachable(self, raft_id: int) -> None:
        """A message to this member was not delivered: stop sending ahead until it answers."""
        progress = self.peers.get(raft_id)
        if self.role is Role.LEADER and progress is not None and raft_id != self.id:
            leader.note_unreachable(progress)

    # Questions ------------------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        """The configuration in force."""
        return self.log.membership

    @property
    def electable(self) -> bool:
        """True when this member may campaign.

        A voter does so even if its own log removes it, until that is committed: the others may
        lack the entry and then cannot elect anybody without it (dissertation 4.2.2).
        """
        voters = self.log.membership.voters | self.log.committed_membership.voters
        return self.id in voters and not self.removed

    @property
    def alone(self) -> bool:
        """True for the only voter."""
        return self.log.membership.voters == {self.id}

    def active_voters(self, membership: Membership) -> set[int]:
        """Leader: return the voters heard within an election time, this member among them."""
        oldest = self.ticks - self.config.election_ticks
        return {
            voter
            for voter in membership.voters
            if voter == self.id
            or (
                (progress := self.peers.get(voter)) is not None
                and progress.heard is not None
                and progress.heard >= oldest
            )
        }

    def not_leader(self) -> NotLeaderError:
        """Return the error that points to the leader."""
        other = self.leader if self.leader != self.id else None
        member = self.log.membership.members.get(other) if other is not None else None
        return NotLeaderError(other, member.addr if member else None)

    # For election, leader and follower ------------------------------------------------------

    def note_heard(self) -> None:
        """The leader of the term lives."""
        self.elapsed = 0
        if self.doubted:
            self.doubted = False
            self.timeout = self._draw_timeout()

    @property
    def leased(self) -> bool:
        """True while a leader was heard so lately that nobody may depose it (dissertation 4.2.3)."""
        lately = self.elapsed < self.config.election_ticks and not self.doubted
        return self.leader is not None and lately

    def send(
        self, to: int, body: Body, *, term: int | None = None, after_sync: bool = False
    ) -> None:
        """Queue a message; it leaves only when all it claims is durable.

        Args:
            to: raft id of the recipient (may be this member, for its own vote).
            body: the message.
            term: another term than the current one (pre-votes).
            after_sync: it claims entries or a snapshot that are not on disk yet. Term and vote
                are looked after here.
        """
        message: Message[Body] = Message(
            cluster=self.config.cluster_id,
            sender=self.id,
            to=to,
            term=self.term if term is None else term,
            incarnation=self.incarnation,
            body=body,
        )
        if after_sync or (self.term, self.vote) != self._durable:
            self._outbox.hold(message)
        else:
            self._release((message,))

    def refuse(self, message: Message[Any], reason: Reason) -> None:
        """Note that a message had no effect."""
        self.events.append(
            Refused(
                reason=reason,
                message=type(message.body).__name__,
                sender=message.sender,
                term=message.term,
            )
        )

    def become_follower(self, term: int, leader_id: int | None) -> None:
        """Follow ``leader_id`` (or wait for a leader) in ``term``."""
        changed = self.role is not Role.FOLLOWER or term != self.term
        if self.role is Role.LEADER:
            asking.fail(self)
        self._enter(Role.FOLLOWER, term)
        if changed:
            self.events.append(RoleChanged(role=Role.FOLLOWER, term=term))
        self.set_leader(leader_id)

    def become_pre_candidate(self) -> None:
        """Ask around in the next term's name without entering it."""
        self._enter(Role.PRE_CANDIDATE, self.term)
        self.events.append(RoleChanged(role=Role.PRE_CANDIDATE, term=self.term))
        self.set_leader(None)

    def become_candidate(self) -> None:
        """Enter a new term with a vote for oneself."""
        self._enter(Role.CANDIDATE, self.term + 1)
        self.vote = self.id
        self.events.append(RoleChanged(role=Role.CANDIDATE, term=self.term))
        self.set_leader(None)

    def become_leader(self) -> None:
        """Lead the term; the first act is an empty entry, which commits all before it."""
        self._enter(Role.LEADER, self.term)
        self.events.append(RoleChanged(role=Role.LEADER, term=self.term))
        self.set_leader(self.id)
        leader.begin(self)

    def set_leader(self, leader_id: int | None) -> None:
        """Note who leads the current term; waiting reads are put to a new leader at once."""
        if leader_id == self.leader:
            return
        self.leader = leader_id
        self.events.append(LeaderChanged(leader=leader_id, term=self.term))
        if leader_id not in {None, self.id}:
            asking.repeat(self)

    def commit_to(self, index: int) -> None:
        """Move the commit index forward, and notice what a committed configuration means."""
        if index <= self.log.commit:
            return
        if index > self.log.last_index:
            raise InvariantError(f"Commit {index} beyond the log's end {self.log.last_index}.")
        self.log.commit = index
        if self.id in self.log.committed_membership.removed:
            self.note_removed()

    def note_removed(self) -> None:
        """This member is out of the group for good."""
        if not self.removed:
            self.removed = True
            self.events.append(WasRemoved(term=self.term))

    def note_membership(self) -> None:
        """Report the configuration in force after it changed."""
        membership = self.log.membership
        self.events.append(
            MembershipChanged(
                index=self.log.membership_index,
                voters=tuple(sorted(membership.voters)),
                learners=tuple(sorted(membership.members.keys() - membership.voters)),
            )
        )

    def install(self, snapshot: Snapshot) -> None:
        """Put a leader's snapshot in the place of the whole log."""
        self.log.restore(snapshot)
        self._restore = self._unsaved_snapshot = snapshot
        self._restore_durable = False
        self.note_membership()
        if self.id in snapshot.membership.removed:
            self.note_removed()

    def is_durable(self, index: int) -> bool:
        """Return whether everything up to ``index`` is on this member's disk."""
        return index <= self.log.saved and self._restore is None

    # Inside ---------------------------------------------------------------------------------

    def _start(self, stored: Stored) -> None:
        me = Member(
            raft_id=self.id, node_id=self.config.node_id, addr=self.config.addr, learner=False
        )
        if stored.empty and self.config.bootstrap:
            first = Membership(members={self.id: me})
            self.term = 1
            self.log.append(
                Entry(index=1, term=1, kind=EntryKind.MEMBERSHIP, data=encode_membership(first))
            )
        elif self.config.force_new_group and self.log.membership.members:
            self.term += 1
            self.vote = None
            only = self.log.membership.alone(me)
            self.log.append(
                Entry(
                    index=self.log.last_index + 1,
                    term=self.term,
                    kind=EntryKind.MEMBERSHIP,
                    data=encode_membership(only),
                )
            )
        if stored.snapshot.index:
            # The state machine starts empty, so its first input is the stored snapshot.
            self._restore, self._restore_durable = stored.snapshot, True
        self.removed = self.id in self.log.committed_membership.removed
        self.timeout = self._draw_timeout()
        if self.log.membership.members:
            self.note_membership()

    def _enter(self, role: Role, term: int) -> None:
        if (self.role, role) not in TRANSITIONS or term < self.term:
            raise InvariantError(f"{self.role} in {self.term} cannot become {role} in {term}.")
        if term != self.term:
            self.term, self.vote = term, None
            # What waits for the next batch promised something in the old term, and that batch may
            # no longer hold it: a new leader can replace the entries before they reach the disk.
            self._outbox.forget()
        self.role = role
        self.elapsed = 0
        self.timeout = self._draw_timeout()
        self.doubted = False
        self.votes = {}
        self.peers = {}
        self.transfer = None
        self.reads.reset()

    def _draw_timeout(self) -> int:
        return self.rng.randrange(self.config.election_ticks, 2 * self.config.election_ticks)

    def _take_batch(self) -> Batch | None:
        if self._outstanding is not None:
            return None
        entries = self.log.unsaved()
        clean = (self.term, self.vote) == self._durable
        if clean and not entries and self._unsaved_snapshot is None:
            # What waits was made durable by a batch that was already on its way.
            self._release(self._outbox.unheld())
            return None
        batch = Batch(
            state=DurableState(term=self.term, vote=self.vote, commit=self.log.commit),
            entries=entries,
            first_index=self.log.first_index,
            prev_term=self.log.prev_term,
            keep_to=self.log.saving,
            snapshot=self._unsaved_snapshot,
        )
        self.log.saving = self.log.last_index
        self._unsaved_snapshot = None
        self._outstanding = batch
        self._outbox.sync()
        return batch

    def _release(self, messages: Iterable[Message[Body]]) -> None:
        for message in messages:
            if message.to == self.id:
                intake.accept(self, message)
            else:
                self._outbox.leaving.append(message)
