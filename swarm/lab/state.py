"""What a lab is made of, and where it lives; one JSON file is the whole truth."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final

from swarm.errors import InvalidArgumentError, NotFoundError

DEFAULT_NAME: Final = "lab"
SUBNET: Final = IPv4Network("192.0.2.0/24")  # TEST-NET-1, RFC 5737
SUBNET6: Final = IPv6Network("2001:db8::/64")  # documentation prefix, RFC 3849
BRIDGE: Final = "lab0"
MAX_HOSTS: Final = 200
"""Hosts of one lab; the rest of the /24 is the bridge's own address and room for clients."""

_NETNS = Path("/run/netns")
_RUN = Path("/run/swarm-lab")
_STATE = Path("/var/lib/swarm-lab")
_LAB_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
_HOST_NAME = re.compile(r"[a-z][a-z0-9]{0,7}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host of a lab.

    ``role`` is ``manager``, ``worker`` or ``bare`` (nothing of ours runs there). ``number`` is the
    host part of its addresses, 1 to :data:`MAX_HOSTS`. ``pid`` is the daemon last started, 0 for none;
    ``started`` its start time in clock ticks, which tells it from a later process with the same id.
    """

    name: str
    role: str
    number: int
    pid: int = 0
    started: int = 0

    @property
    def address(self) -> str:
        """IPv4 address on the underlay, without prefix length."""
        return str(SUBNET[self.number])

    @property
    def address6(self) -> str:
        """IPv6 address on the underlay, without prefix length."""
        return str(SUBNET6[self.number])


class LabState:
    """Paths and hosts of one lab, loaded from and saved to ``/run/swarm-lab/<lab>/lab.json``."""

    __slots__ = ("hosts", "mtu", "name")

    def __init__(self, name: str, *, hosts: dict[str, Host] | None = None, mtu: int = 1500) -> None:
        if not _LAB_NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"{name!r} is not a lab name: lower-case letters and digits, 12 at most, a letter first"
            )
        self.name = name
        self.hosts: dict[str, Host] = {} if hosts is None else hosts
        self.mtu = mtu

    @property
    def run_root(self) -> Path:
        """Run-time directory of the whole lab."""
        return _RUN / self.name

    @property
    def state_root(self) -> Path:
        """Durable directory of the whole lab."""
        return _STATE / self.name

    @property
    def underlay_netns(self) -> Path:
        """Namespace that holds the bridge."""
        return _NETNS / f"{self.name}-underlay"

    def netns(self, host: str) -> Path:
        """Return the network namespace of ``host``, under the name ``ip netns`` shows."""
        return _NETNS / f"{self.name}-{host}"

    def uts(self, host: str) -> Path:
        """Return the uts namespace of ``host``."""
        return self.run_root / host / "uts"

    def run_dir(self, host: str) -> Path:
        """Return the daemon's ``--run-dir`` on ``host``."""
        return self.run_root / host / "run"

    def state_dir(self, host: str) -> Path:
        """Return the daemon's ``--state-dir`` on ``host``."""
        return self.state_root / host / "state"

    def log(self, host: str) -> Path:
        """Return the file that holds the daemon's log."""
        return self.state_root / host / "daemon.log"

    def socket(self, host: str) -> str:
        """Return the ``SWARM_HOST`` of the daemon on ``host``."""
        return f"unix://{self.run_dir(host)}/swarm.sock"

    def require(self, host: str) -> Host:
        """Return the host called ``host``.

        Raises:
            NotFoundError: the lab has no such host, or is not up at all.
        """
        found = self.hosts.get(host)
        if found is None:
            known = ", ".join(sorted(self.hosts)) or "none: start it with 'swarm lab up'"
            raise NotFoundError(f"no host {host!r} in the lab (hosts: {known})")
        return found

    def next_number(self) -> int:
        """Return the lowest free host number.

        Raises:
            InvalidArgumentError: the lab is full.
        """
        used = {host.number for host in self.hosts.values()}
        for number in range(1, MAX_HOSTS + 1):
            if number not in used:
                return number
        raise InvalidArgumentError(f"a lab holds at most {MAX_HOSTS} hosts")

    def save(self) -> None:
        """Write the state, atomically."""
        self.run_root.mkdir(parents=True, exist_ok=True)
        content = {
            "mtu": self.mtu,
            "hosts": [dataclasses.asdict(host) for host in self.hosts.values()],
        }
        beside = self.run_root / ".lab.json"
        beside.write_text(json.dumps(content, indent=1))
        beside.replace(self.run_root / "lab.json")

    def describe(self) -> dict[str, Any]:
        """Return what ``swarm lab status --format json`` prints."""
        return {
            "name": self.name,
            "underlay": {
                "bridge": BRIDGE,
                "netns": self.underlay_netns.name,
                "subnet": str(SUBNET),
                "subnet6": str(SUBNET6),
                "mtu": self.mtu,
            },
            "hosts": [
                {
                    "name": host.name,
                    "netns": self.netns(host.name).name,
                    "address": host.address,
                    "address6": host.address6,
                    "socket": self.socket(host.name) if host.role != "bare" else "",
                    "state_dir": str(self.state_dir(host.name)) if host.role != "bare" else "",
                    "role": host.role,
                    "pid": host.pid,
                }
                for host in self.hosts.values()
            ],
        }


def load(name: str) -> LabState:
    """Return the lab's state; an empty one when it is not up."""
    state = LabState(name)
    path = state.run_root / "lab.json"
    if path.exists():
        content = json.loads(path.read_text())
        state.mtu = content["mtu"]
        state.hosts = {entry["name"]: Host(**entry) for entry in content["hosts"]}
    return state


def check_host_name(name: str) -> str:
    """Return ``name`` if a host can be called so.

    Raises:
        InvalidArgumentError: it cannot.
    """
    if not _HOST_NAME.fullmatch(name) or name == "underlay":
        raise InvalidArgumentError(
            f"{name!r} is not a host name: lower-case letters and digits, 8 at most, a letter first"
        )
    return name


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lab's lock: changes to one lab happen one after another."""
    _RUN.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_RUN / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
