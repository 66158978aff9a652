"""Whether a command serves already: it has a socket that waits for others.

Without this a backend would be sent connections between its start and its first ``listen()``, all of
them refused.

Source: proc(5), ``/proc/PID/net/tcp`` and its siblings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"  # TCP_LISTEN, net/tcp_states.h
_UNCONNECTED: Final = "07"  # TCP_CLOSE: a UDP socket without a peer
_RESOLVER: Final = "0B00007F"  # 127.0.0.11, little-endian: our own name service
_FILES: Final = (
    ("tcp", _LISTEN),
    ("tcp6", _LISTEN),
    ("udp", _UNCONNECTED),
    ("udp6", _UNCONNECTED),
)


def is_listening(pid: int, proc: Path = Path("/proc")) -> bool:
    """Tell whether anything but the name service waits for others in a process's network namespace."""
    return any(waits(_read(proc / str(pid) / "net" / name), state) for name, state in _FILES)


def waits(table: str, state: str) -> bool:
    """Tell whether a table of sockets has one in ``state``, the name service's aside."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == state and not words[1].startswith(_RESOLVER):
            return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
