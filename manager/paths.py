"""Where a manager keeps what: its state, which survives, and its sockets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

CERTIFICATES: Final = "certificates"
RAFT: Final = "raft"
RUN: Final = "manager"
"""Directory of this process's sockets, below the run directory."""

CONTROL_SOCKET: Final = "control.sock"
FRONT_SOCKET: Final = "front.sock"
DIAL: Final = "dial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where a manager keeps what."""

    state_dir: Path
    run_dir: Path

    @property
    def certificates(self) -> Path:
        """Certificate, key and root, shared with this node's agent."""
        return self.state_dir / CERTIFICATES

    @property
    def raft(self) -> Path:
        """The replicated log."""
        return self.state_dir / RAFT

    @property
    def dial(self) -> Path:
        """For the sockets that lead to other managers."""
        return self.run_dir / RUN / DIAL

    @property
    def control(self) -> Path:
        """The socket on which this host's root is a manager."""
        return self.run_dir / RUN / CONTROL_SOCKET

    @property
    def front(self) -> Path:
        """The socket behind the TLS front."""
        return self.run_dir / RUN / FRONT_SOCKET
