"""The all-seeing eye: what must hold after every step, whatever the network and the disks do.

Names are those of the Raft paper, figure 3: election safety, leader append-only, log matching,
leader completeness, state machine safety.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from manager.raft.core import RaftCore
from manager.raft.events import Role, RoleChanged, Truncated
from manager.raft.messages import AppendReply, Batch, Body, Message, Ready, Vote, VoteReply
from support.managers.disk import Disk


@dataclass(slots=True, kw_only=True)
class Process:
    """One manager: a disk that lasts, and a process that comes and goes.

    Attributes:
        core: its raft core while the process runs.
        up: the process was started and has not ended.
        gone: it ended for good: removed from the group, or an old copy.
        life: grows with each start and end.
        lost: the disk it had before an old copy took its place.
        disk_ms: how long a sync takes, from and to.
        syncing: the batch whose sync is under way.
        seen_commit: commit index the eye saw last.
        led: (term, last index) the eye saw last while it led.
    """

    id: int
    bootstrap: bool = False
    disk: Disk = field(default_factory=Disk)
    lost: Disk | None = None
    core: RaftCore | None = None
    up: bool = False
    gone: bool = False
    life: int = 0
    paused: bool = False
    disk_ms: tuple[int, int] = (1, 10)
    syncing: Batch | None = None
    seen_commit: int = 0
    led: tuple[int, int] = (0, 0)


class Eye:
    """Sees every process's memory and disk.

    Attributes:
        committed: (term, data) of every entry that anybody took for committed.
        counts: what happened, by kind.
    """

    def __init__(self, processes: Mapping[int, Process]) -> None:
        self._processes = processes
        self._leaders: dict[int, int] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self._highest = 0
        self._committed_in: dict[int, int] = {}
        self._logged: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.counts: Counter[str] = Counter()

    def observe(self, process: Process, core: RaftCore, ready: Ready) -> None:
        """Look at a core and at what it wants done, before that is done."""
        # What counts as committed is looked at first: logs are compared, not promises.
        before = process.seen_commit
        self._watch_commit(process, core)
        for event in ready.events:
            self.counts[type(event).__name__] += 1
            if isinstance(event, RoleChanged) and event.role is Role.LEADER:
                self._watch_leader(process, core, event.term)
            elif isinstance(event, Truncated):
                assert event.index > before, (
                    f"{process.id} cuts {event.index}, {before} is committed"
                )
        if ready.batch is not None:
            self._watch_log(core, ready.batch)
        for message in ready.messages:
            self._watch_message(process, message)

    def check(self, process: Process) -> None:
        """Look at a core after a step."""
        core = process.core
        assert core is not None
        log = core.log
        assert log.applied <= log.commit <= log.last_index, process.id
        assert log.saved <= log.saving <= log.last_index, process.id
        assert core.role is Role.LEADER or not core.peers, process.id
        if core.role is Role.LEADER:
            term, last_index = process.led
            assert term != core.term or last_index <= log.last_index, (
                f"leader {process.id} of term {term} cut its log from {last_index}"
            )
            process.led = core.term, log.last_index
            self._check_changes(process, core)

    @staticmethod
    def _check_changes(process: Process, core: RaftCore) -> None:
        """Majorities of configurations that can be in force at once overlap only if each step waits.

        For the one before it, and for the leader's own term to have begun (Ongaro's erratum of 2015).
        """
        log = core.log
        open_ = [index for index, _ in log._memberships if index > log.commit]
        assert len(open_) <= 1, f"leader {process.id} has two changes under way: {open_}"
        assert (
            not open_ or log.term_of(open_[0]) != core.term or log.term_of(log.commit) == core.term
        ), f"leader {process.id} changes the group before its term began"

    def _watch_leader(self, process: Process, core: RaftCore, term: int) -> None:
        known = self._leaders.setdefault(term, process.id)
        assert known == process.id, f"two leaders in term {term}: {known} and {process.id}"
        # Leader completeness: what earlier terms committed is in its log. A paused candidate may
        # win an old term while a later one is under way; that is no harm.
        highest = max((i for t, i in self._committed_in.items() if t < term), default=0)
        if highest >= core.log.first_index:
            assert core.log.term_of(highest) == self.committed[highest][0], (
                f"leader {process.id} of term {term} lacks committed entry {highest}"
            )

    def _watch_log(self, core: RaftCore, batch: Batch) -> None:
        """Log matching: an entry's index and term say what it holds and which it follows.

        By induction over the predecessors two logs that share one entry share all before it.
        """
        if batch.snapshot is not None:
            at = batch.snapshot.index
            assert core.log.membership_at(at) == batch.snapshot.membership, f"another group at {at}"
        for entry in batch.entries:
            before = core.log.term_of(entry.index - 1)
            assert before is not None
            known = self._logged.setdefault((entry.index, entry.term), (before, entry.data))
            assert known == (before, entry.data), f"two entries {entry.index}/{entry.term}"

    def _watch_commit(self, process: Process, core: RaftCore) -> None:
        commit = core.log.commit
        if commit <= process.seen_commit:
            assert commit >= process.seen_commit, f"{process.id}: the commit index fell"
            return
        start = max(process.seen_commit + 1, core.log.first_index)
        for entry in core.log.slice(start, max_bytes=1 << 40, max_entries=commit - start + 1):
            known = self.committed.setdefault(entry.index, (entry.term, entry.data))
            assert known == (entry.term, entry.data), (
                f"{process.id} commits {entry}, but {known} was committed there"
            )
        process.seen_commit = commit
        if commit > self._highest:
            self._highest = commit
            # An older entry on a majority may still be replaced (paper, figure 8).
            assert core.role is not Role.LEADER or core.log.term_of(commit) == core.term, (
                f"leader {process.id} commits {commit} by counting an older term's entry"
            )
            self._committed_in[core.term] = commit
            self._watch_majority(core, commit)

    def _watch_majority(self, core: RaftCore, index: int) -> None:
        """An entry that anybody commits for the first time is on a majority of disks."""
        members = core.membership.members.values()
        voters = [member.raft_id for member in members if not member.learner]
        term = core.log.term_of(index)
        # An old copy takes nothing back: what its disk had confirmed before may just now arrive.
        having = sum(
            self._processes[voter].disk.holds(index, term)
            or ((lost := self._processes[voter].lost) is not None and lost.holds(index, term))
            for voter in voters
        )
        assert having > len(voters) // 2, f"{index} committed on {having} of {len(voters)} disks"

    @staticmethod
    def _watch_message(process: Process, message: Message[Body]) -> None:
        """Nothing that leaves may claim what the disk does not hold yet."""
        body, disk = message.body, process.disk
        if isinstance(body, Vote) or (isinstance(body, VoteReply) and body.granted):
            choice = process.id if isinstance(body, Vote) else message.to
            assert disk.votes.get(message.term) == choice, f"{message} before it is durable"
        elif isinstance(body, AppendReply) and not body.rejected and body.index:
            assert body.index <= disk.last_index, f"{message}, but disk ends {disk.last_index}"
            assert disk.stored.state.term >= message.term, f"{message} before it is durable"
