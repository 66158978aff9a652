"""``manager.json``: what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manager.config import MAX_FILE, Availability, ManagerConfig, Mode
from swarm.errors import HostError, InvalidArgumentError

BASE = {"advertise_addr": "192.0.2.1:2377"}


def test_defaults_are_swarms() -> None:
    config = ManagerConfig.from_json(json.dumps(BASE))
    assert config.mode is Mode.INIT
    assert config.listen_addr == "0.0.0.0:2377"
    assert (config.subnet_size, config.data_path_port, config.task_history_limit) == (24, 4789, 5)
    assert config.cert_expiry_ns == 90 * 86400 * 10**9
    assert config.heartbeat_ns == 5 * 10**9
    assert config.availability is Availability.ACTIVE


def test_writing_and_reading_gives_the_same() -> None:
    config = ManagerConfig(
        advertise_addr="[2001:db8::1]:2377",
        default_address_pools=("10.10.0.0/16", "172.30.0.0/16"),
        autolock=True,
        availability=Availability.DRAIN,
    )
    assert ManagerConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": "blue"}, "unknown key in the manager configuration: colour"),
        ({"mode": "rule"}, "mode must be one of init, join"),
        ({"autolock": 1}, "autolock must be of kind bool"),
        ({"subnet_size": True}, "subnet_size must be of kind int"),
        ({"subnet_size": 30}, "subnet_size must be from 1 to 29"),
        ({"data_path_port": 80}, "data_path_port must be from 1024 to 49151"),
        ({"cert_expiry_ns": 1}, "cert_expiry_ns must be from"),
        ({"heartbeat_ns": 0}, "heartbeat_ns must be from"),
        ({"default_address_pools": "10.0.0.0/8"}, "must be a list of texts"),
        ({"default_address_pools": ["10.0.0.1/8"]}, "is not an IPv4 subnet"),
        ({"default_address_pools": ["10.0.0.0/28"]}, "is smaller than one subnet"),
        ({"default_address_pools": ["10.0.0.0/8", "10.1.0.0/16"]}, "overlaps another one"),
        ({"default_address_pools": ["10.0.0.0/24"] * 65}, "more than 64"),
        ({"listen_addr": "2377"}, "is not host:port"),
        ({"advertise_addr": "manager.example:2377"}, "advertise_addr must be an address"),
        ({"advertise_addr": "0.0.0.0:2377"}, "is no address a node could connect to"),
        ({"advertise_addr": "192.0.2.1"}, "is not host:port"),
    ],
)
def test_refusals_name_the_key(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text.replace("(", r"\(")):
        ManagerConfig.from_json(json.dumps({**BASE, **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '"x"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ManagerConfig.from_json(text)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"manager\.json"):
        ManagerConfig.load(tmp_path)
    (tmp_path / "manager.json").write_text(" " * (MAX_FILE + 1))
    with pytest.raises(InvalidArgumentError, match="larger than"):
        ManagerConfig.load(tmp_path)
