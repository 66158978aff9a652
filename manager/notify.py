"""Readiness and status for whoever started this process, in systemd's datagram protocol.

Source: sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

MAX_STATUS: Final = 4096
"""Longest status line sent, characters."""


class Notifier:
    """Sends to ``NOTIFY_SOCKET``; without one, says nothing.

    Args:
        address: a path, or an abstract name after ``@``; None for nobody.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Talk to whoever the environment names."""
        return cls(environment.get("NOTIFY_SOCKET") or None)

    def ready(self, status: str) -> None:
        """Say that this process serves."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        """Say in one line what this process does or why it failed."""
        self._send(f"STATUS={_line(text)}")

    def stopping(self) -> None:
        """Say that this process is about to end as asked."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        # Nobody listening must not keep a manager from its work.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.sendto(message.encode(), address)


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS]
