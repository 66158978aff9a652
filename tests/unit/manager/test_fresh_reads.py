"""What a leader of a moment ago decides, it decides by what its predecessor acknowledged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manager.api.backend import Backend
from manager.api.membership import NEWCOMER, RAFT_KEY, Membership
from manager.ca.service import NodeCertificates
from manager.store import Store
from manager.store.entry import Action, Attempt, Edit, dump_attempt, dump_entry
from manager.store.tables import TableId
from swarm.api import codec
from swarm.api.docker.swarmkit import ca_pb2, membership_pb2
from swarm.model import Certificate, IssuanceState, IssuanceStatus, Node, NodeRole, NodeSpec

CALLER: Any = SimpleNamespace(node_id="n1", address="192.0.2.9")
CONTEXT: Any = SimpleNamespace(invocation_metadata=lambda: ((RAFT_KEY, NEWCOMER),))


class ReachedError(Exception):
    """The call got past its checks."""


@pytest.fixture
def backend() -> Backend:
    """A manager whose state lacks, until the barrier, that node n1 is a manager with a certificate."""
    store = Store(clock_ns=lambda: 1)
    certificate = Certificate(
        role=NodeRole.MANAGER,
        status=IssuanceStatus(state=IssuanceState.ISSUED),
        certificate=b"chain",
        cn="n1",
    )
    node = Node(
        id="n1",
        spec=NodeSpec(desired_role=NodeRole.MANAGER),
        role=NodeRole.MANAGER,
        certificate=certificate,
    )
    edit = Edit(action=Action.CREATE, table=TableId.NODE, id="n1", data=codec.dumps(node))
    entry = dump_entry([dump_attempt(Attempt(id=b"earlier leader", time=1, edits=(edit,)))])

    async def barrier() -> None:
        if store.index == 0:
            store.apply(1, entry)

    return Backend(store=store, barrier=barrier, managers=dict)


async def test_a_certificate_that_another_leader_issued_is_found(backend: Backend) -> None:
    request = ca_pb2.NodeCertificateStatusRequest(node_id="n1")
    answer = await NodeCertificates(backend).NodeCertificateStatus(request, CALLER, CONTEXT)
    assert answer.certificate.certificate == b"chain"


async def test_a_manager_that_another_leader_promoted_is_taken_in(backend: Backend) -> None:
    def raft() -> Any:
        raise ReachedError

    async def probe(_: str, __: str) -> None:
        raise AssertionError("too late")

    request = membership_pb2.JoinRequest(addr="192.0.2.9:2377")
    with pytest.raises(ReachedError):
        await Membership(backend, raft, probe).Join(request, CALLER, CONTEXT)
