"""The one decision about a call, and the contracts it is read from."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st

from manager.api.access import MAX_FORWARDED_TEXT, Access, Caller, access_of, admit
from swarm.api.docker.swarmkit import dispatcher_pb2
from swarm.api.overswarm.v1 import options_pb2
from swarm.errors import InvariantError, PermissionDeniedError
from swarm.identity.certs import Identity, Peer, Role

ORG = "ours"
OPEN = Access(roles=frozenset(), open=True, leader=True)
WORKERS = Access(roles=frozenset({Role.WORKER, Role.MANAGER}), open=False, leader=True)
MANAGERS = Access(roles=frozenset({Role.MANAGER}), open=False, leader=True)


def peer(role: Role | None, *, org: str = ORG, node: str = "n") -> Peer:
    identity = None if role is None else Identity(node_id=node, cluster_id=org, role=role)
    return Peer(address="192.0.2.7:1000", identity=identity)


def decide(access: Access, who: Peer, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> Caller:
    return admit(access, who, metadata, cluster_id=ORG, removed={"gone"})


@pytest.mark.parametrize(
    ("access", "role", "org", "node", "passes"),
    [
        (WORKERS, Role.WORKER, ORG, "n", True),
        (WORKERS, Role.MANAGER, ORG, "n", True),
        (MANAGERS, Role.MANAGER, ORG, "n", True),
        (MANAGERS, Role.WORKER, ORG, "n", False),
        (WORKERS, Role.SCHEDULER, ORG, "n", False),
        (WORKERS, Role.WORKER, "theirs", "n", False),
        (WORKERS, Role.WORKER, ORG, "gone", False),
        (WORKERS, None, ORG, "n", False),
    ],
)
def test_role_and_organisation_and_good_standing(
    access: Access, role: Role | None, org: str, node: str, passes: bool
) -> None:
    who = peer(role, org=org, node=node)
    if passes:
        assert decide(access, who).node_id == node
    else:
        with pytest.raises(PermissionDeniedError):
            decide(access, who)


@pytest.mark.parametrize(
    "who",
    [
        peer(None),
        peer(Role.WORKER, org="theirs"),
        peer(Role.MANAGER, node="gone"),
    ],
)
def test_an_open_call_sees_no_identity_without_good_standing(who: Peer) -> None:
    caller = decide(OPEN, who)
    assert caller.role is None
    with pytest.raises(InvariantError):
        _ = caller.node_id


def test_an_open_call_sees_a_member() -> None:
    assert decide(OPEN, peer(Role.WORKER)).node_id == "n"


@pytest.mark.parametrize(
    ("address", "host"),
    [("192.0.2.7:1000", "192.0.2.7"), ("[2001:db8::1]:1", "2001:db8::1"), ("", "")],
)
def test_the_callers_address_comes_without_its_port(address: str, host: str) -> None:
    assert Caller(peer=Peer(address=address)).address == host


class TestForwarding:
    WORKER = (
        ("forwarded_cert", "true"),
        ("forwarded_cert_cn", "w"),
        ("forwarded_cert_org", ORG),
        ("forwarded_cert_ou", "swarm-worker"),
        ("remote_addr", "198.51.100.1:7"),
    )

    def test_the_original_caller_is_the_caller(self) -> None:
        caller = decide(WORKERS, peer(Role.MANAGER), self.WORKER)
        assert (caller.node_id, caller.role, caller.address) == ("w", Role.WORKER, "198.51.100.1")

    def test_its_rights_count_and_not_the_forwarders(self) -> None:
        with pytest.raises(PermissionDeniedError):
            decide(MANAGERS, peer(Role.MANAGER), self.WORKER)

    @pytest.mark.parametrize(
        "who",
        [
            peer(None),
            peer(Role.WORKER),
            peer(Role.MANAGER, org="theirs"),
            peer(Role.MANAGER, node="gone"),
        ],
    )
    def test_only_managers_in_good_standing_forward(self, who: Peer) -> None:
        for access in (OPEN, WORKERS, MANAGERS):
            with pytest.raises(PermissionDeniedError):
                decide(access, who, self.WORKER)

    @pytest.mark.parametrize(
        "missing", ["forwarded_cert_cn", "forwarded_cert_org", "forwarded_cert_ou"]
    )
    def test_an_empty_value_counts_as_no_certificate(self, missing: str) -> None:
        metadata = tuple((k, "" if k == missing else v) for k, v in self.WORKER)
        assert decide(OPEN, peer(Role.MANAGER), metadata).role is None
        with pytest.raises(PermissionDeniedError):
            decide(WORKERS, peer(Role.MANAGER), metadata)

    def test_a_mark_nobody_sends_is_refused(self) -> None:
        for marks in (["false"], ["true", "true"]):
            metadata = tuple(("forwarded_cert", mark) for mark in marks)
            with pytest.raises(PermissionDeniedError):
                decide(OPEN, peer(Role.MANAGER), metadata)

    def test_values_without_the_mark_mean_nothing(self) -> None:
        assert decide(WORKERS, peer(Role.WORKER), self.WORKER[1:]).node_id == "n"

    def test_a_removed_original_caller_is_refused(self) -> None:
        metadata = tuple((k, "gone" if k.endswith("_cn") else v) for k, v in self.WORKER)
        with pytest.raises(PermissionDeniedError, match="removed"):
            decide(WORKERS, peer(Role.MANAGER), metadata)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([key for key, _ in WORKER]),
                st.text(max_size=2 * MAX_FORWARDED_TEXT) | st.binary(max_size=64),
            ),
            max_size=8,
        )
    )
    def test_no_metadata_gives_a_worker_more(self, metadata: list[tuple[str, str | bytes]]) -> None:
        with pytest.raises(PermissionDeniedError):
            decide(MANAGERS, peer(Role.WORKER), tuple(metadata))


class TestContracts:
    def test_a_declaration_is_read(self) -> None:
        method = dispatcher_pb2.DESCRIPTOR.services_by_name["Dispatcher"].methods_by_name["Session"]
        assert access_of(method) == WORKERS

    @pytest.mark.parametrize(
        "declared",
        [
            None,
            options_pb2.Access(),
            options_pb2.Access(roles=["swarm-worker"], open=True),
            options_pb2.Access(roles=["swarm-emperor"]),
        ],
    )
    def test_an_rpc_without_a_sound_declaration_is_a_bug(
        self, declared: options_pb2.Access | None
    ) -> None:
        with pytest.raises(InvariantError):
            access_of(_method(declared))


def _method(declared: options_pb2.Access | None) -> MethodDescriptor:
    """Return a method of a contract made up here."""
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="x", syntax="proto3")
    file.message_type.add(name="M")
    method = file.service.add(name="S").method.add(name="R", input_type=".x.M", output_type=".x.M")
    if declared is not None:
        method.options.Extensions[options_pb2.access].CopyFrom(declared)
    pool.AddSerializedFile(file.SerializeToString())
    found: MethodDescriptor = pool.FindServiceByName("x.S").methods_by_name["R"]
    return found
