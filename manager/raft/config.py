"""The knobs of one raft member, and the bounds of the protocol."""

from __future__ import annotations

from dataclasses import dataclass

MAX_ENTRY_BYTES = 2 * 1024 * 1024
"""Largest payload of one entry. Swarm's own limit for a transaction is 1.5 MiB."""

MAX_APPEND_BYTES = 1024 * 1024
"""Payload bytes put into one append, except that one entry always fits whatever its size."""

MAX_APPEND_ENTRIES = 4096
"""Entries in one append."""

MAX_INFLIGHT_APPENDS = 64
"""Appends to one follower that wait for its answer before the leader pauses."""

MAX_INFLIGHT_BYTES = 8 * 1024 * 1024
"""Payload bytes to one follower that wait for its answer before the leader pauses."""

MAX_UNCOMMITTED_BYTES = 64 * 1024 * 1024
"""Payload a leader takes in beyond its commit index; above it proposals are refused."""

MAX_PENDING_READS = 16384
"""Reads waiting for confirmation on one member; above it reads are refused."""

SNAPSHOT_CHUNK_BYTES = 512 * 1024
"""Payload of one snapshot chunk."""

SNAPSHOT_WINDOW_BYTES = 4 * SNAPSHOT_CHUNK_BYTES
"""Snapshot bytes to one follower that wait for its answer."""

MAX_SNAPSHOT_BYTES = 512 * 1024 * 1024
"""Largest snapshot a follower assembles in memory."""

MAX_VOTERS = 7
"""Voting managers. More only slow every write; Swarm advises the same bound."""

MAX_MEMBERS = 16
"""Voters and learners together."""

MAX_REMOVED = 65536
"""Removed raft ids remembered for good (8 bytes each)."""

MAX_TEXT_BYTES = 512
"""Node ids, addresses and the cluster id."""

CAUGHT_UP_ENTRIES = 256
"""A learner this close to the end of the leader's log may be promoted."""

MAX_INDEX = 2**62
"""Indexes and terms beyond this are nonsense; keeps SQLite's signed 64-bit integers safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """What one member is told at start."""

    cluster_id: str
    """The group's identity; messages of another cluster are refused."""
    raft_id: int
    """This member, 1..2**63-1, random and never used again after a removal."""
    node_id: str
    """The node's identity in the cluster (its certificate's common name)."""
    addr: str
    """host:port under which the other managers reach this one."""
    bootstrap: bool = False
    """True for the first manager: an empty storage becomes a group of one. False for a joiner,
    which stays silent until a leader adds it. Ignored when the storage holds state."""
    force_new_group: bool = False
    """Disaster recovery: go on alone with the state at hand, removing every other member."""
    tick_seconds: float = 0.1
    """Length of a tick. The core only counts ticks."""
    heartbeat_ticks: int = 1
    """Ticks between a leader's heartbeats. Lower finds a dead leader's silence no earlier (that is
    ``election_ticks``) but confirms reads and repairs losses sooner."""
    election_ticks: int = 10
    """E. A follower waits E to 2E-1 ticks (random) before it asks for votes; a leader that hears
    no quorum for E ticks steps down. Must be well above heartbeat_ticks and a disk sync."""
    snapshot_entries: int = 10_000
    """Applied entries after which a snapshot replaces the log's front (Swarm's default)."""
    snapshot_bytes: int = 64 * 1024 * 1024
    """Applied payload bytes after which the same happens earlier."""
    trailing_entries: int = 500
    """Entries kept behind a snapshot for slow followers (Swarm's default)."""

    def __post_init__(self) -> None:
        if not 0 < self.raft_id < 2**63:
            raise ValueError(f"raft_id {self.raft_id} is not in 1..2**63-1")
        if not 0 < self.heartbeat_ticks < self.election_ticks:
            raise ValueError("heartbeat_ticks must be positive and below election_ticks")
