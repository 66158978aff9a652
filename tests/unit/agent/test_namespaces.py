"""One namespace under several paths; files and hard links stand for namespaces and their paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.api import namespaces
from agent.api.namespaces import Namespaces
from agent.node.state import Attachment


def attachment(path: Path, number: int = 1, *, foreign: bool = True) -> Attachment:
    return Attachment(
        endpoint_id=f"{number:064x}",
        attachment_id=f"task{number}",
        network_id="net1",
        target="blue",
        container_id=f"{number:064x}",
        container_name=f"c{number}",
        netns=str(path),
        interface="eth0",
        mac="02:42:0a:00:01:02",
        addresses=("10.0.1.2/24",),
        foreign=foreign,
    )


def made(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_an_endpoint_is_found_by_any_path_of_its_namespace(tmp_path: Path) -> None:
    path = made(tmp_path / "a")
    other = tmp_path / "b"
    other.hardlink_to(path)
    entries = [attachment(made(tmp_path / "c"), 2), attachment(path)]
    found = Namespaces()
    for _ in range(2):  # what was seen before changes nothing
        assert found.find(str(other), entries) is entries[1]
        assert found.find(str(made(tmp_path / "d")), entries) is None


def test_our_own_containers_and_missing_namespaces_are_nobodys(tmp_path: Path) -> None:
    path = made(tmp_path / "a")
    found = Namespaces()
    assert found.find(str(path), [attachment(path, foreign=False)]) is None
    assert found.find(str(tmp_path / "none"), [attachment(tmp_path / "none")]) is None


def test_a_namespace_that_took_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    found, path, old = Namespaces(), made(tmp_path / "a"), tmp_path / "old"
    entries = [attachment(path)]
    assert found.find(str(path), entries) is entries[0]
    path.rename(old)
    assert found.find(str(old), entries) is None  # the path of the endpoint is gone
    made(path)
    assert found.find(str(old), entries) is None  # it leads elsewhere now
    assert found.find(str(path), entries) is entries[0]


def test_paths_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = namespaces._identity

    def counting(path: str) -> tuple[int, int] | None:
        looked.append(path)
        return real(path)

    monkeypatch.setattr(namespaces, "_identity", counting)
    entries = [attachment(made(tmp_path / str(number)), number) for number in range(50)]
    found = Namespaces()
    found.find(str(made(tmp_path / "new")), entries)
    assert len(looked) == 51
    looked.clear()
    found.find(str(tmp_path / "new"), entries)
    assert looked == [str(tmp_path / "new")]
