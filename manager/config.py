"""What the agent tells the manager it starts: ``manager.json`` in the state directory.

Most of it describes the cluster to make and is looked at only when there is none yet; the
addresses count at every start.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from swarm.errors import HostError, InvalidArgumentError
from swarm.identity.sockets import split_target

FILE: Final = "manager.json"
MAX_FILE: Final = 64 * 1024
"""Largest configuration looked at, bytes."""

SECOND: Final = 1_000_000_000
HOUR: Final = 3600 * SECOND
UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})
"""Hosts that mean every address."""

MAX_POOLS: Final = 64
MAX_JOINED: Final = 64
MIN_DATA_PATH_PORT: Final = 1024
MAX_DATA_PATH_PORT: Final = 49151
MAX_SUBNET_SIZE: Final = 29
"""Longest default subnet: eight addresses, of which five are usable."""


class Mode(StrEnum):
    """How this manager came to be one."""

    INIT = "init"
    JOIN = "join"


class Availability(StrEnum):
    """What may be placed on this node at first."""

    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """One manager's configuration; unknown keys are refused.

    Raises:
        InvalidArgumentError: a value is out of its range; the text names the key.
    """

    mode: Mode = Mode.INIT
    """``init`` makes a cluster at the first start, ``join`` enters one; later starts go on with what is
    stored."""
    listen_addr: str = "0.0.0.0:2377"
    """``host:port`` this manager serves on; host 0.0.0.0 or [::] means every address of both families."""
    advertise_addr: str = ""
    """``ip:port`` the other nodes reach this manager at; they are told it, so it must be exact."""
    default_address_pools: tuple[str, ...] = ()
    """CIDRs networks without a subnet are cut from, in order; none means 10.0.0.0/8. Fixed for good."""
    subnet_size: int = 24
    """Prefix length of such a subnet: at least the pool's own, at most 29."""
    data_path_port: int = 4789
    """UDP port of VXLAN, 1024 to 49151. Fixed for good."""
    cert_expiry_ns: int = 2160 * HOUR
    """Validity of a node certificate, nanoseconds, at least an hour."""
    heartbeat_ns: int = 5 * SECOND
    """Time between a node's heartbeats, nanoseconds, at least a second; down after three missed."""
    key_rotation_ns: int = 12 * HOUR
    """Time between two rotations of the network keys, nanoseconds, at least a second."""
    task_history_limit: int = 5
    """Finished tasks kept per slot."""
    availability: Availability = Availability.ACTIVE
    """Availability of this node."""
    autolock: bool = False
    """Whether a restarted manager needs the unlock key."""
    join_addrs: tuple[str, ...] = ()
    """``host:port`` of managers, of which one takes this manager in at its first start (``join``)."""
    force_new_cluster: bool = False
    """Disaster recovery: go on alone with the state at hand, dropping every other manager."""
    snapshot_interval: int = 10_000
    """Log entries between two snapshots."""
    max_snapshots: int = 0
    """Old snapshots kept beside the newest."""

    @property
    def listen(self) -> tuple[str, int]:
        """Host (empty for every address) and port this manager serves on."""
        host, port = split_target(self.listen_addr)
        return ("" if host in UNSPECIFIED else host), port

    def __post_init__(self) -> None:
        split_target(self.listen_addr)
        self._check_advertised()
        self._check_joined()
        self._check_pools()
        _within("data_path_port", self.data_path_port, MIN_DATA_PATH_PORT, MAX_DATA_PATH_PORT)
        _within("cert_expiry_ns", self.cert_expiry_ns, HOUR, 1 << 62)
        _within("heartbeat_ns", self.heartbeat_ns, SECOND, HOUR)
        _within("key_rotation_ns", self.key_rotation_ns, SECOND, 1 << 62)
        _within("task_history_limit", self.task_history_limit, -1, 1 << 31)
        _within("snapshot_interval", self.snapshot_interval, 1, 1 << 31)
        _within("max_snapshots", self.max_snapshots, 0, 1 << 16)

    def _check_advertised(self) -> None:
        host, _ = split_target(self.advertise_addr)
        try:
            address = ipaddress.ip_address(host)
        except ValueError as error:
            raise InvalidArgumentError(
                f"advertise_addr must be an address and a port, not {self.advertise_addr!r}"
            ) from error
        if address.is_unspecified:
            raise InvalidArgumentError(
                f"advertise_addr {self.advertise_addr} is no address a node could connect to"
            )

    def _check_joined(self) -> None:
        if len(self.join_addrs) > MAX_JOINED:
            raise InvalidArgumentError(f"join_addrs names more than {MAX_JOINED} managers")
        if self.mode is Mode.JOIN and not self.join_addrs:
            raise InvalidArgumentError("join_addrs must name a manager to join")
        for addr in self.join_addrs:
            split_target(addr)

    def _check_pools(self) -> None:
        if len(self.default_address_pools) > MAX_POOLS:
            raise InvalidArgumentError(f"there are more than {MAX_POOLS} default address pools")
        _within("subnet_size", self.subnet_size, 1, MAX_SUBNET_SIZE)
        networks: list[ipaddress.IPv4Network] = []
        for pool in self.default_address_pools:
            try:
                network = ipaddress.IPv4Network(pool)
            except ValueError as error:
                raise InvalidArgumentError(
                    f"the default address pool {pool!r} is not an IPv4 subnet: {error}"
                ) from error
            if network.prefixlen > self.subnet_size:
                raise InvalidArgumentError(
                    f"the default address pool {pool} is smaller than one subnet of size {self.subnet_size}"
                )
            if any(network.overlaps(other) for other in networks):
                raise InvalidArgumentError(f"the default address pool {pool} overlaps another one")
            networks.append(network)

    @classmethod
    def from_json(cls, text: str | bytes) -> ManagerConfig:
        """Read a configuration.

        Raises:
            InvalidArgumentError: not a JSON object, an unknown key, or a value of the wrong kind.
        """
        try:
            content: Any = json.loads(text)
        except ValueError as error:
            raise InvalidArgumentError(f"the manager configuration is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InvalidArgumentError("the manager configuration is not a JSON object")
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise InvalidArgumentError(
                f"unknown key in the manager configuration: {', '.join(unknown)}"
            )
        return cls(
            **{key: _typed(key, known[key].default, value) for key, value in content.items()}
        )

    def to_json(self) -> str:
        """Write a configuration as :meth:`from_json` reads it."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, state_dir: Path) -> ManagerConfig:
        """Read ``<state_dir>/manager.json``.

        Raises:
            HostError: it cannot be read.
            InvalidArgumentError: as :meth:`from_json`.
        """
        path = state_dir / FILE
        try:
            with path.open("rb") as file:
                text = file.read(MAX_FILE + 1)
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error
        if len(text) > MAX_FILE:
            raise InvalidArgumentError(f"{path} is larger than {MAX_FILE} bytes")
        return cls.from_json(text)


def _within(key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"{key} must be from {low} to {high}, not {value}")


def _typed(key: str, default: Any, value: Any) -> Any:
    """Turn a JSON value into the kind of its field's default."""
    if isinstance(default, StrEnum):
        kind = type(default)
        try:
            return kind(value)
        except ValueError as error:
            choices = ", ".join(kind)
            raise InvalidArgumentError(f"{key} must be one of {choices}, not {value!r}") from error
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise InvalidArgumentError(f"{key} must be a list of texts")
        return tuple(value)
    if type(value) is not type(default):  # a JSON true is no number, though Python's bool is an int
        raise InvalidArgumentError(f"{key} must be of kind {type(default).__name__}, not {value!r}")
    return value
