"""What a node is told to do: its settings, how to make a cluster, how to join one; and what its manager is told."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.gossip.config import LAN, Timing
from agent.node.address import Addresses
from swarm.errors import InvalidArgumentError
from swarm.identity.sockets import join_address
from swarm.model import NodeAvailability


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What the daemon was started with."""

    state_dir: Path
    run_dir: Path
    hostname: str
    log_level: str = "info"
    timing: Timing = LAN


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """How to make a cluster; empty and zero mean the defaults."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pools: tuple[str, ...] = ()
    default_addr_pool_mask_length: int = 0
    availability: NodeAvailability = NodeAvailability.ACTIVE
    cert_expiry_ns: int = 0
    dispatcher_heartbeat_ns: int = 0
    task_history_limit: int = 0
    autolock: bool = False
    force_new_cluster: bool = False
    snapshot_interval: int = 0
    max_snapshots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """How to join a cluster."""

    remote_addrs: tuple[str, ...]
    token: str = field(repr=False)
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    availability: NodeAvailability = NodeAvailability.ACTIVE


def check_init(options: InitOptions) -> None:
    """Refuse early what the manager would refuse, in words a person typed options for.

    Raises:
        InvalidArgumentError: an option makes no sense.
    """
    port = options.data_path_port
    if port and not 1024 <= port <= 49151:
        raise InvalidArgumentError(
            f"data path port {port} is not between 1024 and 49151 (or 0 for the default)"
        )
    mask = options.default_addr_pool_mask_length
    if mask and not options.default_addr_pools:
        raise InvalidArgumentError("--default-addr-pool-mask-length needs a --default-addr-pool")
    if mask > 29:
        raise InvalidArgumentError(f"subnets of /{mask} are too small: at most /29")
    for pool in options.default_addr_pools:
        try:
            ipaddress.IPv4Network(pool)
        except ValueError as error:
            raise InvalidArgumentError(
                f"default address pool {pool!r} is not an IPv4 subnet: {error}"
            ) from error
    hour = 3600 * 1_000_000_000
    if 0 < options.cert_expiry_ns < hour:
        raise InvalidArgumentError("node certificates must be valid for at least an hour")


def joining_config(addresses: Addresses, managers: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a manager that joins others."""
    return {
        "mode": "join",
        "listen_addr": addresses.listen,
        "advertise_addr": join_address(addresses.advertise, addresses.advertise_port),
        "join_addrs": list(managers),
    }


def founding_config(options: InitOptions, addresses: Addresses) -> dict[str, Any]:
    """Return the manager's settings; what was not asked for is left to its own defaults."""
    asked: dict[str, Any] = {
        "default_address_pools": list(options.default_addr_pools),
        "subnet_size": options.default_addr_pool_mask_length,
        "data_path_port": options.data_path_port,
        "cert_expiry_ns": options.cert_expiry_ns,
        "heartbeat_ns": options.dispatcher_heartbeat_ns,
        "task_history_limit": options.task_history_limit,
        "snapshot_interval": options.snapshot_interval,
        "max_snapshots": options.max_snapshots,
    }
    return {
        "mode": "init",
        "listen_addr": addresses.listen,
        "advertise_addr": join_address(addresses.advertise, addresses.advertise_port),
        "availability": options.availability.name.lower(),
        "autolock": options.autolock,
        **{key: value for key, value in asked.items() if value},
    }
