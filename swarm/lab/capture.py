"""What passes over a host's cable: ESP and VXLAN packets, counted by kind."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from swarm.errors import HostError
from swarm.kernel.netns import in_netns
from swarm.lab.hosts import port_name
from swarm.lab.state import LabState

ETH_P_ALL: Final = 3
SO_RCVBUFFORCE: Final = 33
SOL_PACKET, PACKET_STATISTICS = 263, 6
BUFFER: Final = 32 << 20
SNAP: Final = 128
"""Bytes looked at of each frame: Ethernet, IPv6, UDP and VXLAN headers are 70."""
VXLAN_PORT: Final = 4789
_ESP, _UDP, _FRAGMENT = 50, 17, 44
_NAP: Final = 0.05


@dataclass(slots=True)
class Sight:
    """What a capture has seen.

    Attributes:
        esp: ESP packets.
        vxlan: packets to the tunnel's port outside ESP, by VNI.
        fragments: pieces of packets that did not fit.
        spis: the associations used.
    """

    esp: int = 0
    vxlan: Counter[int] = field(default_factory=Counter)
    fragments: int = 0
    spis: set[int] = field(default_factory=set)

    def note(self, frame: bytes, port: int) -> None:
        """Count one frame, cut after :data:`SNAP` bytes or not; what is no IP packet is nothing."""
        if len(frame) < 34:
            return
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == 0x0800:
            protocol, rest = frame[23], frame[14 + (frame[14] & 15) * 4 :]
            if struct.unpack_from("!H", frame, 20)[0] & 0x3FFF:
                protocol = _FRAGMENT
        elif kind == 0x86DD:
            protocol, rest = frame[20], frame[54:]
        else:
            return
        if protocol == _FRAGMENT:
            self.fragments += 1
        elif protocol == _ESP and len(rest) >= 4:
            self.esp += 1
            self.spis.add(int.from_bytes(rest[:4], "big"))
        elif protocol == _UDP and len(rest) >= 16 and rest[2:4] == port.to_bytes(2, "big"):
            self.vxlan[int.from_bytes(rest[12:15], "big")] += 1


class Capture:
    """Counts what passes over one host's cable, in both directions, while it is entered.

    Args:
        lab: the lab.
        host: whose cable.
        port: UDP port of the cluster's VXLAN.
    """

    def __init__(self, lab: LabState, host: str, port: int = VXLAN_PORT) -> None:
        self._netns: Path = lab.underlay_netns
        self._device = port_name(host)
        self._port = port
        self._stop = threading.Event()
        self._open = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sight = Sight()

    def __enter__(self) -> Self:
        self._thread.start()
        self._open.wait()
        self._raise()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise HostError(f"the capture on {self._device} failed: {self._error}")

    def _run(self) -> None:
        try:
            with in_netns(self._netns):
                receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            with receiver:
                receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
                receiver.bind((self._device, 0))
                self._open.set()
                self._read(receiver)
        except (OSError, HostError) as error:
            self._error = error
        finally:
            self._open.set()

    def _read(self, receiver: socket.socket) -> None:
        # Once told to stop, one more look that finds nothing ends it.
        while select.select([receiver], [], [], _NAP)[0] or not self._stop.is_set():
            while select.select([receiver], [], [], 0)[0]:
                self.sight.note(receiver.recv(SNAP), self._port)
        _, missed = struct.unpack("=II", receiver.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        if missed:
            raise HostError(f"it has missed {missed} frames")
