"""Checksum offload of a device in the calling thread's namespace.

Source: Linux ``include/uapi/linux/{sockios,ethtool}.h``.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x16, 0x17
_IFREQ = struct.Struct("=16sQ16x")
_VALUE = struct.Struct("=II")


def checksums(ifname: str) -> bool:
    """Tell whether a device is given packets whose checksums are not made yet; so when it is not there."""
    try:
        return _ask(ifname, ETHTOOL_GTXCSUM, 0) != 0
    except OSError:
        return True


def set_checksums(ifname: str, *, on: bool) -> None:
    """Say whether a device is to be given packets whose checksums are not made yet.

    Raises:
        OSError: the kernel refused.
    """
    _ask(ifname, ETHTOOL_STXCSUM, int(on))


def _ask(ifname: str, command: int, value: int) -> int:
    buffer = array.array("B", _VALUE.pack(command, value))
    request = _IFREQ.pack(ifname.encode(), buffer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, SIOCETHTOOL, request)
    answer: int = _VALUE.unpack(buffer.tobytes())[1]
    return answer
