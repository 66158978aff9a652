"""The lab's state file and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.errors import InvalidArgumentError, NotFoundError
from swarm.lab import state as module
from swarm.lab.faults import Cut, Loss, _ruleset, check_percent
from swarm.lab.state import MAX_HOSTS, Host, LabState, check_host_name, load


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every path of the lab below a folder of the test."""
    monkeypatch.setattr(module, "_RUN", tmp_path / "run")
    monkeypatch.setattr(module, "_STATE", tmp_path / "state")


def test_saved_and_loaded_alike() -> None:
    """What is saved is what is loaded."""
    lab = LabState("lab", mtu=9000)
    lab.hosts["m1"] = Host(name="m1", role="manager", number=1, pid=7, started=9)
    lab.save()
    loaded = load("lab")
    assert (loaded.hosts, loaded.mtu) == (lab.hosts, 9000)
    assert loaded.describe()["hosts"][0]["netns"] == "lab-m1"
    assert loaded.describe()["underlay"]["subnet"] == "192.0.2.0/24"


def test_a_lab_that_is_not_up_is_empty() -> None:
    """No file means no hosts, and asking for one says how to get it."""
    with pytest.raises(NotFoundError, match="swarm lab up"):
        load("lab").require("m1")


def test_numbers_are_reused_and_bounded() -> None:
    """The lowest free number is given; a full lab refuses."""
    lab = LabState("lab")
    for number in range(1, MAX_HOSTS + 1):
        lab.hosts[f"h{number}"] = Host(name=f"h{number}", role="bare", number=number)
    with pytest.raises(InvalidArgumentError, match=str(MAX_HOSTS)):
        lab.next_number()
    del lab.hosts["h17"]
    assert lab.next_number() == 17


@pytest.mark.parametrize("name", ["", "M1", "1m", "underlay", "verylongname", "a-b", "../x"])
def test_bad_host_names(name: str) -> None:
    """A host name is short, plain, and no path."""
    with pytest.raises(InvalidArgumentError):
        check_host_name(name)


@pytest.mark.parametrize("name", ["", "Lab", "../lab", "averyverylongname"])
def test_bad_lab_names(name: str) -> None:
    """So is a lab's."""
    with pytest.raises(InvalidArgumentError):
        LabState(name)


def test_faults_become_one_transaction() -> None:
    """A cut is one rule a pair and direction, a loss one rule a direction; none leaves no table."""
    assert len(_ruleset([])) == 2
    cut = _ruleset([Cut(sources=("a", "b"), targets=("c",))])
    assert sum("rule" in command.get("add", {}) for command in cut) == 2
    lossy = _ruleset([Loss(host="a", percent=12.5)])
    rules = [command["add"]["rule"] for command in lossy if "rule" in command.get("add", {})]
    assert [rule["expr"][1]["match"]["right"] for rule in rules] == [1250, 1250]


@pytest.mark.parametrize("percent", [-1, 101, float("nan")])
def test_impossible_losses(percent: float) -> None:
    """A loss outside 0 to 100 percent is refused."""
    with pytest.raises(InvalidArgumentError):
        check_percent(percent)
