"""Whether the daemon's namespace forwards packets, switched without a word to the rest of the host.

For IPv4 it is one switch. For IPv6 the same file does two things: packets between devices are
forwarded (which looks at nothing else), and every device becomes a router's: it hears no more
advertisements, and the default routes that it had from them are dropped at that moment. The second
is what a host must not suffer from us: each device keeps the part it had.

Worker thread only; the calling thread's namespace is meant.

Source:
    Linux ``Documentation/networking/ip-sysctl.rst``, ``conf/all/forwarding`` and ``accept_ra``;
    ``net/ipv6/addrconf.c``, ``addrconf_fixup_forwarding``; ``net/ipv6/ip6_output.c``, ``ip6_forward``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from agent.dataplane import sysctl
from swarm.errors import HostError

PATHS: Final[Mapping[int, str]] = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
"""The switch, by IP version."""

_DEVICES: Final = "net/ipv6/conf"
_ALL: Final = "all"


def forwards(version: int) -> bool:
    """Tell whether packets of an IP version are forwarded."""
    return sysctl.read(PATHS[version]) not in {"0", None}


def switch(version: int, *, on: bool) -> None:
    """Have packets of an IP version forwarded, or not.

    Raises:
        HostError: the kernel refused.
    """
    if version == 4:
        sysctl.write(PATHS[4], str(int(on)))
        return
    with contextlib.closing(sysctl.Tree()) as tree:
        devices = [each.name for each in (sysctl.PROC / _DEVICES).iterdir() if each.name != _ALL]
        parts = {path: tree.read(path) for path in map(_part, devices)}
        # Whoever hears advertisements although a router (2) keeps its routes at the switch.
        hear = [path for path in map(_hears, devices) if on and tree.read(path) == "1"]
        for path in hear:
            tree.write(path, "2")
        try:
            tree.write(PATHS[6], str(int(on)))
        finally:
            for path, value in (*parts.items(), *((path, "1") for path in hear)):
                with contextlib.suppress(HostError):  # the device has just gone
                    if value is not None and tree.read(path) != value:
                        tree.write(path, value)


def _part(device: str) -> str:
    return f"{_DEVICES}/{device}/forwarding"


def _hears(device: str) -> str:
    return f"{_DEVICES}/{device}/accept_ra"
