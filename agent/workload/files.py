"""The texts of a workload's own files under ``/etc``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from agent.discovery.redirect import ADDRESS

_STANDARD_HOSTS: Final = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::0", "ip6-localnet"),
    ("ff00::0", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def resolv_conf(search: Sequence[str], options: Sequence[str]) -> str:
    """Return resolv.conf: the node's own name server, whatever the host uses."""
    lines = [f"nameserver {ADDRESS}"]
    if search:
        lines.append("search " + " ".join(search))
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def hosts(hostname: str, addresses: Iterable[str], extra: Iterable[tuple[str, str]]) -> str:
    """Return the hosts file: the loopback names, the extra lines, and the workload's own addresses."""
    lines = [*_STANDARD_HOSTS, *extra, *((address, hostname) for address in addresses)]
    return "".join(f"{address}\t{names}\n" for address, names in lines)
