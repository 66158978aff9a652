"""The session as a state machine: no input, output, clock or randomness of its own.

``epoch`` numbers the connections; whatever still arrives from an earlier one is dropped. Everything the
core wants done leaves through :meth:`SessionCore.take_outputs`, in order.

Source: SwarmKit ``agent/agent.go`` (triggers of a renewal, timings), ``api/dispatcher.proto``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from agent.session.assignments import Assignments, GapError
from agent.session.managers import FAILURE, SUCCESS, ManagerList
from agent.session.messages import (
    AssignmentsUpdate,
    Beat,
    Drop,
    Dropped,
    Hangup,
    KeysChanged,
    ManagersChanged,
    NodeChanged,
    OpenAssignments,
    Output,
    Phase,
    Register,
    RenewalDemanded,
    Report,
    RootOffered,
    SessionConfig,
    SessionLost,
    SessionOpened,
    SessionUpdate,
    TaskRemoved,
)
from swarm.model import (
    EncryptionKey,
    IssuanceState,
    Meta,
    Node,
    NodeRole,
    NodeStatus,
    Peer,
    Task,
    TaskState,
    TaskStatus,
)

KEYS_PER_SUBSYSTEM: Final = 3
SUBSYSTEMS: Final = ("networking:gossip", "networking:ipsec")


class SessionCore:
    """One node's session, across all its connections.

    Attributes:
        phase: where it stands.
        session_id: given by the manager, shown again on every reconnect; empty before the first.
        node: the manager's last word on this node, None before the first.
        keys: the network keys in force.
        peer: the manager talked to now or last.
        last_error: why the last session ended; empty while all is well.
    """

    __slots__ = (
        "_assignments",
        "_backoff",
        "_beat_at",
        "_config",
        "_deadline",
        "_dirty",
        "_outputs",
        "_reporting",
        "_rng",
        "_role",
        "_root",
        "_statuses",
        "epoch",
        "keys",
        "last_error",
        "managers",
        "node",
        "peer",
        "phase",
        "session_id",
    )

    def __init__(
        self,
        config: SessionConfig,
        *,
        node_id: str,
        role: NodeRole,
        managers: Iterable[Peer],
        root_pem: bytes,
        rng: random.Random,
        session_id: str = "",
        keys: tuple[EncryptionKey, ...] = (),
    ) -> None:
        self._config = config
        self._rng = rng
        self._role = role  # the role the manager last wanted; a change of it demands a renewal
        self._root = root_pem
        self._assignments = Assignments(node_id)
        self._statuses: dict[str, TaskStatus] = {}
        self._dirty: dict[str, None] = {}  # insertion order is sending order
        self._reporting: tuple[tuple[str, TaskStatus], ...] = ()
        self._outputs: list[Output] = []
        self._backoff = 0.0
        self._deadline: float | None = None
        self._beat_at: float | None = None
        self.managers = ManagerList(managers)
        self.epoch = 0
        self.phase = Phase.IDLE
        self.session_id = session_id
        self.node: Node | None = None
        self.keys = keys
        self.peer: Peer | None = None
        self.last_error = ""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks assigned to this node."""
        return self._assignments.tasks

    def take_outputs(self) -> list[Output]:
        """Hand over what is to be done and told, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def deadline(self) -> float | None:
        """When ``tick`` is due next; None for never."""
        times = [when for when in (self._deadline, self._beat_at) if when is not None]
        return min(times) if times else None

    def start(self, now: float) -> None:
        """Begin: register with some manager at once."""
        if self.phase is Phase.IDLE:
            self._connect(now)

    def close(self) -> None:
        """End for good; nothing happens after this."""
        if self.phase in {Phase.REGISTERING, Phase.ACTIVE}:
            self._outputs.append(Hangup(epoch=self.epoch))
        self.phase = Phase.CLOSED
        self._deadline = self._beat_at = None

    def restart(self, now: float) -> None:
        """Register again at once, because what this node says of itself changed."""
        if self.phase in {Phase.REGISTERING, Phase.ACTIVE}:
            self._outputs.append(Hangup(epoch=self.epoch))
            self._connect(now)

    def tick(self, now: float) -> None:
        """Do what time demands: the end of a pause, a registration that takes too long, a heartbeat."""
        if self._deadline is not None and now >= self._deadline:
            if self.phase is Phase.WAITING:
                self._connect(now)
            elif self.phase is Phase.REGISTERING:
                self.on_lost(self.epoch, "the manager did not answer the registration in time", now)
        if self._beat_at is not None and now >= self._beat_at:
            self._beat_at = None  # armed again by the answer
            self._outputs.append(Beat(epoch=self.epoch, session_id=self.session_id))

    def on_session(self, epoch: int, update: SessionUpdate, now: float) -> None:
        """Take a message of the Session stream."""
        if self._stale(epoch):
            return
        if self.phase is Phase.REGISTERING:
            self._registered(update, now)
        elif update.session_id != self.session_id:
            self.on_lost(epoch, "the manager changed the session id", now)
            return
        self._learn_managers(update)
        if update.root_ca and update.root_ca != self._root:
            self._root = update.root_ca
            self._outputs.append(RootOffered(root_pem=update.root_ca))
        self._learn_keys(update.keys)
        if update.node is not None:
            self._learn_node(update.node)

    def on_heartbeat(self, epoch: int, period: float, now: float) -> None:
        """Take a heartbeat's answer: the next is due in ``period`` seconds."""
        if self._stale(epoch) or self.phase is not Phase.ACTIVE:
            return
        period = min(max(period, self._config.min_heartbeat), self._config.max_heartbeat)
        self._beat_at = now + period

    def on_assignments(self, epoch: int, update: AssignmentsUpdate, now: float) -> None:
        """Take a message of the Assignments stream; a gap ends the session."""
        if self._stale(epoch):
            return
        try:
            news = self._assignments.apply(update)
        except GapError as error:
            self.on_lost(epoch, str(error), now)
            return
        self._outputs += news
        for each in news:
            if isinstance(each, TaskRemoved):
                self.forget(each.task_id)

    def on_lost(self, epoch: int, reason: str, now: float) -> None:
        """Take the end of any call of the session: all of it ends, and starts over after a pause."""
        if self._stale(epoch) or self.phase not in {Phase.REGISTERING, Phase.ACTIVE}:
            return
        if self.peer is not None:
            self.managers.observe(self.peer, FAILURE)
        self._outputs.append(Hangup(epoch=self.epoch))
        self._pause(reason, now)

    def on_reported(self, epoch: int) -> None:
        """Take the end of a status call: what changed meanwhile goes out next."""
        if self._stale(epoch):
            return
        for task_id, status in self._reporting:
            if self._statuses.get(task_id) == status:
                self._dirty.pop(task_id, None)
        self._reporting = ()
        self._send_statuses()

    def report(self, task_id: str, status: TaskStatus) -> None:
        """Tell the manager a task's state; states never go down, a lower one is ignored."""
        known = self._statuses.get(task_id)
        if known is not None and status.state < known.state:
            return
        self._statuses[task_id] = status
        self._dirty[task_id] = None
        self._send_statuses()

    def reported(self, task_id: str) -> TaskState | None:
        """Return the state last reported for a task."""
        status = self._statuses.get(task_id)
        return None if status is None else status.state

    def forget(self, task_id: str) -> None:
        """Stop reporting a task."""
        self._statuses.pop(task_id, None)
        self._dirty.pop(task_id, None)

    def _stale(self, epoch: int) -> bool:
        if epoch == self.epoch and self.phase is not Phase.CLOSED:
            return False
        self._outputs.append(Dropped(reason=Drop.STALE_EPOCH, detail=str(epoch)))
        return True

    def _connect(self, now: float) -> None:
        self._beat_at = None
        self._reporting = ()
        peer = self.managers.choose(self._rng)
        if peer is None:
            self.peer = None
            self._pause("no manager is known", now)
            return
        self.epoch += 1
        self.peer = peer
        self.phase = Phase.REGISTERING
        self._deadline = now + self._config.register_timeout
        self._assignments.reopened()
        self._outputs.append(Register(epoch=self.epoch, peer=peer, session_id=self.session_id))

    def _pause(self, reason: str, now: float) -> None:
        config = self._config
        self._backoff = min(
            config.backoff_base + config.backoff_factor * self._backoff, config.backoff_max
        )
        self._deadline = now + self._rng.random() * self._backoff
        self._beat_at = None
        self._reporting = ()
        self.phase = Phase.WAITING
        self.last_error = reason
        self._outputs.append(SessionLost(peer=self.peer, reason=reason, retry_within=self._backoff))

    def _registered(self, update: SessionUpdate, now: float) -> None:
        assert self.peer is not None  # noqa: S101  # REGISTERING always has one
        self.phase = Phase.ACTIVE
        self.session_id = update.session_id
        self.last_error = ""
        self._backoff = 0.0
        self._deadline = None
        self._beat_at = (
            now  # the first heartbeat at once: only then a manager counts the node as alive
        )
        self.managers.observe(self.peer, SUCCESS)
        self._outputs.append(SessionOpened(peer=self.peer, session_id=self.session_id))
        self._outputs.append(OpenAssignments(epoch=self.epoch, session_id=self.session_id))
        self._dirty = dict.fromkeys(self._statuses)
        self._send_statuses()
        self.tick(now)

    def _learn_managers(self, update: SessionUpdate) -> None:
        if not update.managers:
            # Engines forget every manager here and can never reconnect; staying reachable is better.
            self._outputs.append(Dropped(reason=Drop.NO_MANAGERS))
        elif self.managers.replace(update.managers):
            self._outputs.append(ManagersChanged(peers=self.managers.peers))

    def _learn_keys(self, keys: tuple[EncryptionKey, ...]) -> None:
        if not keys or {key.lamport_time for key in keys} == {
            key.lamport_time for key in self.keys
        }:
            return
        if (problem := keys_problem(keys)) is not None:
            self._outputs.append(Dropped(reason=Drop.BAD_KEYS, detail=problem))
            return
        self.keys = keys
        self._outputs.append(KeysChanged(keys=keys))

    def _learn_node(self, node: Node) -> None:
        old, self.node = self.node, node
        wanted = node.spec.desired_role
        rotate = node.certificate.status.state is IssuanceState.ROTATE
        # Asked again after a renewal, whose end a message may have passed over, is asked anew.
        asked = (
            old is not None
            and old.certificate.status.state is IssuanceState.ROTATE
            and old.certificate.csr == node.certificate.csr
        )
        if wanted != self._role or (rotate and not asked):
            self._role = wanted
            self._outputs.append(RenewalDemanded(role=wanted))
        if old is None or _essence(node) != _essence(old):
            self._outputs.append(NodeChanged(node=node))

    def _send_statuses(self) -> None:
        if self.phase is not Phase.ACTIVE or self._reporting or not self._dirty:
            return
        batch = list(self._dirty)[: self._config.status_batch]
        self._reporting = tuple((task_id, self._statuses[task_id]) for task_id in batch)
        self._outputs.append(
            Report(epoch=self.epoch, session_id=self.session_id, statuses=self._reporting)
        )


def keys_problem(keys: tuple[EncryptionKey, ...]) -> str | None:
    """Say what is wrong with a key list, None when nothing is.

    Engines insist on three keys of each subsystem present, 16 bytes each; a list that they would refuse
    must not split the gossip into nodes that took it and nodes that did not.
    """
    by_subsystem: dict[str, int] = {}
    for key in keys:
        if key.subsystem not in SUBSYSTEMS:
            return f"unknown subsystem {key.subsystem[:40]!r}"
        if len(key.key) != 16:
            return f"a key of {len(key.key)} bytes"
        by_subsystem[key.subsystem] = by_subsystem.get(key.subsystem, 0) + 1
    for subsystem, count in by_subsystem.items():
        if count != KEYS_PER_SUBSYSTEM:
            return f"{count} keys of {subsystem} instead of {KEYS_PER_SUBSYSTEM}"
    if len({key.lamport_time for key in keys}) != len(keys):
        return "two keys with one lamport time"
    return None


def _essence(node: Node) -> Node:
    """A node without what changes all the time."""
    return replace(node, status=NodeStatus(), meta=Meta())
