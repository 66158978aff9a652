"""The node's files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.node.address import Addresses
from agent.node.memory import EntryLog
from agent.node.state import NodeState, RunDirectory, SessionState, StateDirectory
from swarm.errors import HostError, PreconditionError
from swarm.model import EncryptionKey, Node, Peer

STATE = NodeState(
    node_id="n1",
    cluster_id="c1",
    manager=True,
    addresses=Addresses(
        listen="0.0.0.0:2377", advertise="192.0.2.1", advertise_port=2377, data_path="192.0.2.1"
    ),
)


def test_membership_round_trip(tmp_path: Path) -> None:
    """What is saved is loaded; managers are kept in dockerd's form."""
    state = StateDirectory(tmp_path)
    assert state.load() is None
    state.save(STATE)
    state.save_managers((Peer(node_id="m", addr="192.0.2.1:2377"),))
    assert state.load() == STATE
    assert state.load_managers() == (Peer(node_id="m", addr="192.0.2.1:2377"),)
    assert '"node_id": "m"' in (tmp_path / "state.json").read_text()


def test_a_damaged_membership_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Silence would make the node forget its cluster."""
    (tmp_path / "node.json").write_text("{")
    with pytest.raises(HostError, match=r"node\.json"):
        StateDirectory(tmp_path).load()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    """Leaving removes everything in it, so nothing foreign may be there when joining."""
    (tmp_path / "precious").write_text("x")
    with pytest.raises(PreconditionError, match="precious"):
        StateDirectory(tmp_path).require_unused()


def test_wiping_leaves_an_empty_directory(tmp_path: Path) -> None:
    """Certificates and the manager's data go, too."""
    state = StateDirectory(tmp_path)
    state.save(STATE)
    (tmp_path / "raft").mkdir()
    (tmp_path / "raft" / "log").write_text("x")
    state.wipe()
    assert list(tmp_path.iterdir()) == []


def test_session_state_is_private_and_survives(tmp_path: Path) -> None:
    """Network keys are readable by nobody else."""
    run = RunDirectory(tmp_path)
    run.prepare()
    known = SessionState(
        session_id="s",
        keys=(EncryptionKey(subsystem="x", key=b"k" * 16, lamport_time=1),),
        node=Node(id="n1", vxlan_udp_port=4790),
    )
    run.save_session(known)
    assert run.load_session() == known
    assert stat.S_IMODE((tmp_path / "session.json").stat().st_mode) == 0o600


def test_members_are_noted(tmp_path: Path) -> None:
    """Until the membership ends."""
    run = RunDirectory(tmp_path)
    run.prepare()
    assert run.members() == ()
    members = (("192.0.2.1", 7946), ("2001:db8::1", 7946))
    run.save_members(members)
    assert run.members() == members
    run.wipe()
    assert run.members() == ()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "1",
        '{"a": 1}',
        "[1]",
        '[["x", 7946]]',
        '[["192.0.2.1", 0]]',
        '[["192.0.2.1", "p"]]',
    ],
)
def test_damaged_notes_of_members_count_as_none(tmp_path: Path, content: str) -> None:
    """Others call this node in time."""
    (tmp_path / "members.json").write_text(content)
    assert RunDirectory(tmp_path).members() == ()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"session_id": "s", "keys": ["!"], "node": null}']
)
def test_a_damaged_session_counts_as_none(tmp_path: Path, content: str) -> None:
    """It only speeds things up; the manager says it all again."""
    run = RunDirectory(tmp_path)
    (tmp_path / "session.json").write_text(content)
    assert run.load_session() == SessionState()


def test_the_gossip_name_is_kept(tmp_path: Path) -> None:
    """A restarted agent keeps its entries; a damaged or all-decimal name is replaced."""
    run = RunDirectory(tmp_path)
    assert run.gossip_name("0123456789ab") == "0123456789ab"
    assert run.gossip_name("ffffffffffff") == "0123456789ab"
    (tmp_path / "gossip").write_text("123456789012")
    assert run.gossip_name("ffffffffffff") == "ffffffffffff"


def test_entries_are_remembered_and_forgotten(tmp_path: Path) -> None:
    """The last line of a key counts."""
    log = EntryLog(tmp_path / "n1")
    log.put("t", "a", b"1")
    log.put("t", "a", b"2")
    log.put("t", "b", b"3")
    log.delete("t", "b")
    again = EntryLog(tmp_path / "n1")
    again.load()
    assert again.entries == {("t", "a"): b"2"}
    assert again.unconfirmed == {("t", "a")}
    again.put("t", "a", b"2")
    assert again.unconfirmed == set()


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    """Everything before it counts."""
    log = EntryLog(tmp_path / "n1")
    log.put("t", "a", b"1")
    log.put("t", "b", b"2")
    path = tmp_path / "n1"
    path.write_text(path.read_text()[:-8])
    again = EntryLog(path)
    again.load()
    assert again.entries == {("t", "a"): b"1"}


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    """A busy network's file is rewritten when most of it is history."""
    log = EntryLog(tmp_path / "n1")
    for index in range(3000):
        log.put("t", "a", str(index).encode())
    assert len((tmp_path / "n1").read_text().splitlines()) <= 1001
    again = EntryLog(tmp_path / "n1")
    again.load()
    assert again.entries == {("t", "a"): b"2999"}
