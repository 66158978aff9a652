"""Applying entries: checks on every replica, repetition, malformed bytes, exact snapshots."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.store import RepeatedError, machine
from manager.store.entry import (
    MAX_BATCH_TRANSACTIONS,
    MAX_CHANGES,
    MAX_ENTRY_BYTES,
    Action,
    Attempt,
    Edit,
    dump_attempt,
    dump_entry,
    load_entry,
)
from manager.store.machine import Machine
from manager.store.tables import Object, TableId
from swarm.api import codec
from swarm.api.overswarm.v1 import store_pb2
from swarm.errors import (
    ConflictError,
    InvalidArgumentError,
    InvariantError,
    NotFoundError,
    PreconditionError,
    StaleError,
    SwarmError,
    WireError,
)
from swarm.model import (
    Annotations,
    Cluster,
    ClusterSpec,
    Driver,
    Endpoint,
    IPAMConfig,
    IPAMOptions,
    Network,
    NetworkAttachment,
    NetworkSpec,
    Node,
    PortConfig,
    PortProtocol,
    PublishMode,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    TaskStatus,
    VirtualIP,
)

VXLANS = "com.docker.network.driver.overlay.vxlanid_list"


def net(object_id: str, *, subnet: str = "", vnis: str = "", ingress: bool = False) -> Network:
    """A network named after its id."""
    return Network(
        id=object_id,
        spec=NetworkSpec(annotations=Annotations(name=f"name-{object_id}"), ingress=ingress),
        driver_state=Driver(name="overlay", options={VXLANS: vnis} if vnis else {}),
        ipam=IPAMOptions(
            configs=(
                IPAMConfig(subnet=subnet, gateway=str(subnet).replace(".0/", ".1/").split("/")[0]),
            )
            if subnet
            else ()
        ),
    )


def on(network: Network, *addresses: str) -> tuple[NetworkAttachment, ...]:
    """An attachment."""
    return (NetworkAttachment(network=network, addresses=addresses),)


def service(object_id: str, **endpoint: object) -> Service:
    """A service named after its id."""
    return Service(
        id=object_id,
        spec=ServiceSpec(annotations=Annotations(name=f"name-{object_id}")),
        endpoint=Endpoint(**endpoint),  # type: ignore[arg-type]  # test shorthand
    )


TABLES = {
    Cluster: TableId.CLUSTER,
    Node: TableId.NODE,
    Network: TableId.NETWORK,
    Service: TableId.SERVICE,
    Task: TableId.TASK,
}


def create(item: Object) -> Edit:
    """A creation as another leader might have logged it, blind to what is there."""
    return Edit(action=Action.CREATE, table=TABLES[type(item)], id=item.id, data=codec.dumps(item))


class Driver2:
    """Two machines fed with the same entries."""

    def __init__(self) -> None:
        self.machines = [Machine(), Machine()]
        self.index = 0
        self.serial = 0

    def entry(self, *transactions: tuple[Edit, ...] | Attempt) -> list[SwarmError | None]:
        """Apply transactions as one entry to both and return the results."""
        attempts = []
        for each in transactions:
            self.serial += 1
            attempt = each
            if not isinstance(attempt, Attempt):
                attempt = Attempt(id=b"a%d" % self.serial, time=self.serial, edits=attempt)
            attempts.append(dump_attempt(attempt))
        self.index += 1
        data = dump_entry(attempts)
        results = [each.apply(self.index, data).results for each in self.machines]
        assert [repr(e) for e in results[0]] == [repr(e) for e in results[1]]
        assert self.machines[0].snapshot() == self.machines[1].snapshot()
        return list(results[0])


WEB = net("web", subnet="10.0.1.0/24", vnis="4097")
TCP80 = PortConfig(published_port=80, target_port=8080)


@pytest.mark.parametrize(
    ("item", "error", "text"),
    [
        (replace(net("x"), spec=NetworkSpec(annotations=Annotations(name="NAME-WEB"))), ConflictError, "network with name NAME-WEB already exists"),
        (net("x", vnis="5000,4097"), ConflictError, "VNI 4097 is in use by network name-web"),
        (net("x", subnet="10.0.0.0/16"), ConflictError, r"10.0.1.0/24 of network name-web"),
        (net("x", subnet="10.0.1.128/25"), ConflictError, "overlaps"),
        (net("x", ingress=True), ConflictError, r"ingress network \(ing\) is already present"),
        (Task(id="x", networks=on(WEB, "10.0.1.5/24")), ConflictError, "10.0.1.5 on network name-web is in use by task t1"),
        (Task(id="x", networks=on(WEB, "10.0.1.6/24")), ConflictError, "by node n1"),
        (Node(id="x", attachments=on(WEB, "10.0.1.7/24")), ConflictError, "by service s1"),
        (service("x", virtual_ips=(VirtualIP(network_id="web", addr="10.0.1.5/24"),)), ConflictError, "by task t1"),
        (Task(id="x", networks=on(WEB, "10.0.1.1/24")), ConflictError, "by the gateway"),
        (Task(id="x", networks=on(WEB, "10.0.1.0/24")), ConflictError, "by the network address"),
        (Task(id="x", networks=on(WEB, "10.0.1.255/24")), ConflictError, "by the broadcast address"),
        (Task(id="x", networks=on(WEB, "10.0.2.5/24")), InvalidArgumentError, "not in a subnet of network name-web"),
        (Task(id="x", networks=on(WEB, "10.0.1.x/24")), InvalidArgumentError, "not an IP address"),
        (Task(id="x", networks=on(net("gone"), "10.0.1.9/24")), NotFoundError, "network gone not found"),
        (service("x", ports=(TCP80,)), ConflictError, r"port 80/tcp is already in use by service 'name-s1' \(s1\)"),
        (Task(id="t1"), ConflictError, "task t1 already exists"),
        (Cluster(id="x", spec=ClusterSpec(annotations=Annotations(name="Default"))), ConflictError, "cluster with name"),
        (net("x", vnis="4095"), InvalidArgumentError, "VNI 4095"),
        (net("x", vnis="4100,4100"), InvalidArgumentError, "twice"),
        (net("x", vnis="nine"), InvalidArgumentError, "decimal"),
        (net("x", subnet="10.9.0.1/24"), InvalidArgumentError, "invalid CIDR"),
    ],
)  # fmt: skip
def test_claims_are_checked_again_when_applied(
    item: Object, error: type[SwarmError], text: str
) -> None:
    """A transaction another leader built blindly is rejected whole; its neighbours commit."""
    driver = Driver2()
    setup = (
        create(Cluster(id="c", spec=ClusterSpec(annotations=Annotations(name="default")))),
        create(WEB),
        create(net("ing", ingress=True)),
        create(Task(id="t1", networks=on(WEB, "10.0.1.5/24"))),
        create(Node(id="n1", attachments=on(WEB, "10.0.1.6/24"))),
        create(service("s1", ports=(TCP80,), virtual_ips=(VirtualIP(network_id="web", addr="10.0.1.7/24"),))),
    )  # fmt: skip
    assert driver.entry(setup) == [None]
    before = driver.machines[0].snapshot()
    side = create(Node(id="first")), create(Node(id="last"))
    results = driver.entry((side[0],), (create(Task(id="half")), create(item)), (side[1],))
    assert [type(each) for each in results] == [type(None), error, type(None)]
    with pytest.raises(error, match=text):
        raise results[1] or AssertionError
    state = driver.machines[0].state
    assert state.tasks.get("half") is None
    assert {"first", "last"} <= {each.id for each in state.nodes}
    undo = tuple(
        Edit(action=Action.DELETE, table=TableId.NODE, id=each, seen_index=2)
        for each in ("first", "last")
    )
    driver.entry(undo)
    # But for the memory of its fate the rejected transaction has left no trace.
    assert _records(driver.machines[0].snapshot()) == _records(before)


def _records(data: bytes) -> object:
    message = store_pb2.StoreSnapshot.FromString(data)
    del message.outcomes[:]
    return message


def test_what_does_not_claim_does_not_conflict() -> None:
    """Host ports, other protocols, ended tasks and equal hostnames share freely."""
    driver = Driver2()
    ended = TaskStatus(state=TaskState.COMPLETE)
    results = driver.entry(
        (create(WEB), create(service("s1", ports=(TCP80,)))),
        (create(service("s2", ports=(replace(TCP80, publish_mode=PublishMode.HOST),))),),
        (create(service("s3", ports=(replace(TCP80, protocol=PortProtocol.UDP),))),),
        (create(Task(id="t1", networks=on(WEB, "10.0.1.5/24"), status=ended)),),
        (create(Task(id="t2", networks=on(WEB, "10.0.1.5/24"))),),
    )
    assert results == [None] * 5


def test_network_in_use_is_neither_deleted_nor_given_other_subnets() -> None:
    """Its addresses are somebody's until that object lets go."""
    driver = Driver2()
    driver.entry((create(WEB), create(Task(id="t", networks=on(WEB, "10.0.1.5/24")))))
    gone = Edit(action=Action.DELETE, table=TableId.NETWORK, id="web", seen_index=1)
    other = replace(WEB, ipam=IPAMOptions(configs=(IPAMConfig(subnet="10.7.0.0/24"),)))
    moved = Edit(
        action=Action.UPDATE,
        table=TableId.NETWORK,
        id="web",
        data=codec.dumps(other),
        seen_index=1,
    )
    results = driver.entry((gone,), (moved,))
    assert [type(each) for each in results] == [PreconditionError] * 2
    assert "network web is in use" in str(results[0])
    task = Edit(action=Action.DELETE, table=TableId.TASK, id="t", seen_index=1)
    assert driver.entry((task, gone)) == [None]
    assert driver.entry((create(net("new", subnet="10.0.1.0/24", vnis="4097")),)) == [None]


def test_a_change_made_from_an_older_object_is_stale() -> None:
    """The version an update was made from must be the present one."""
    driver = Driver2()
    driver.entry((create(Task(id="t")),))

    def update(slot: int, **seen: int) -> Edit:
        data = codec.dumps(Task(id="t", slot=slot))
        return Edit(action=Action.UPDATE, table=TableId.TASK, id="t", data=data, **seen)

    results = driver.entry((update(1, seen_index=1),), (update(2, seen_index=1),))
    assert [type(each) for each in results] == [type(None), StaleError]
    # Made from what the first transaction of the same entry had made.
    results = driver.entry((update(3, seen_index=2),), (update(4, seen_transaction=1),))
    assert results == [None, None]
    # The first is rejected, so what the second was made from never was.
    results = driver.entry((update(5, seen_index=2),), (update(6, seen_transaction=1),))
    assert [type(each) for each in results] == [StaleError, StaleError]
    assert driver.machines[0].state.tasks.require("t").slot == 4
    missing = Edit(action=Action.DELETE, table=TableId.TASK, id="u", seen_index=1)
    assert type(driver.entry((missing,))[0]) is NotFoundError


def test_an_attempt_is_applied_once() -> None:
    """Logged twice it succeeds twice and acts once; a rejected one stays rejected."""
    driver = Driver2()
    good = Attempt(id=b"good", time=1, edits=(create(Task(id="t")),))
    bad = Attempt(id=b"bad", time=1, edits=(create(net("x", subnet="10.0.1.0/24")),))
    assert driver.entry((create(WEB),), good) == [None, None]
    assert driver.entry(good) == [None]
    assert type(driver.entry(bad)[0]) is ConflictError
    gone = Edit(action=Action.DELETE, table=TableId.NETWORK, id="web", seen_index=1)
    assert driver.entry((gone,)) == [None]
    assert type(driver.entry(bad)[0]) is StaleError
    assert driver.machines[0].state.networks.get("x") is None


def test_a_request_takes_effect_once_over_leaders() -> None:
    """Another attempt of a request that was carried out tells its version and what it created."""
    driver = Driver2()
    first = Attempt(id=b"1", request_id="r", edits=(create(Task(id="t1")),))
    second = Attempt(id=b"2", request_id="r", edits=(create(Task(id="t2")),))
    results = driver.entry(first, second)
    assert results[0] is None
    error = results[1]
    assert isinstance(error, RepeatedError)
    assert (error.index, error.created) == (1, (("task", "t1"),))


def test_a_rejected_request_may_be_tried_again() -> None:
    """Only success is final for a request."""
    driver = Driver2()
    item = net("x", subnet="10.0.1.0/24")
    driver.entry((create(WEB),))
    assert driver.entry(Attempt(id=b"1", request_id="r", edits=(create(item),)))[0] is not None
    driver.entry((Edit(action=Action.DELETE, table=TableId.NETWORK, id="web", seen_index=1),))
    assert driver.entry(Attempt(id=b"2", request_id="r", edits=(create(item),))) == [None]


def test_memory_of_transactions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest fate is forgotten first, in the snapshot too."""
    monkeypatch.setattr(machine, "OUTCOMES", 3)
    driver = Driver2()
    for number in range(5):
        edits = (create(Task(id=f"t{number}")),)
        driver.entry(Attempt(id=b"%d" % number, request_id=f"r{number}", edits=edits))
    kept = store_pb2.StoreSnapshot.FromString(driver.machines[0].snapshot()).outcomes
    assert [each.request_id for each in kept] == ["r2", "r3", "r4"]
    assert driver.machines[0].repeated("r1") is None
    assert driver.machines[0].repeated("r2") is not None


def test_entries_arrive_in_order() -> None:
    """An index that does not rise is a bug of the caller."""
    item = Machine()
    item.apply(5, b"")
    with pytest.raises(InvariantError):
        item.apply(5, b"")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_a_wire_error(data: bytes) -> None:
    """Also cut or altered ones, for entries and snapshots."""
    for load in (load_entry, lambda each: Machine().restore(1, each)):
        with contextlib.suppress(WireError):
            load(data)


def test_oversized_entries_are_wire_errors() -> None:
    """Bytes, transactions, changes and ids are bounded."""
    attempt = store_pb2.StoreTransaction(id=b"1")
    with pytest.raises(WireError):
        load_entry(bytes(MAX_ENTRY_BYTES + 1))
    with pytest.raises(WireError):
        load_entry(dump_entry([attempt] * (MAX_BATCH_TRANSACTIONS + 1)))
    change = store_pb2.StoreChange(action=1, table=1, id="x")
    many = store_pb2.StoreTransaction(id=b"1", changes=[change] * (MAX_CHANGES + 1))
    broken = [
        many,
        store_pb2.StoreTransaction(id=b""),
        store_pb2.StoreTransaction(id=b"x" * 129),
        store_pb2.StoreTransaction(id=b"1", request_id="x" * 129),
        store_pb2.StoreTransaction(id=b"1", changes=[store_pb2.StoreChange(action=1, table=1)]),
        store_pb2.StoreTransaction(id=b"1", changes=[store_pb2.StoreChange(table=1, id="x")]),
        store_pb2.StoreTransaction(id=b"1", changes=[store_pb2.StoreChange(action=1, id="x")]),
        store_pb2.StoreTransaction(
            id=b"1",
            changes=[store_pb2.StoreChange(action=9, table=1, id="x")],  # type: ignore[arg-type]  # not an action
        ),
    ]
    for each in broken:
        with pytest.raises(WireError):
            load_entry(dump_entry([each]))


def test_equal_networks_are_held_once() -> None:
    """Tasks and nodes on one network share its copy; what they carry is what was written."""
    driver = Driver2()
    tasks = [Task(id=f"t{n}", networks=on(WEB, f"10.0.1.{n}/24")) for n in (5, 6)]
    node = Node(id="n", attachments=(*on(WEB, "10.0.1.7/24"), NetworkAttachment()))
    driver.entry(tuple(create(each) for each in (WEB, *tasks, node)))
    state = driver.machines[0].state
    for item in (*tasks, node):
        held = state.table_of(item).require(item.id)
        assert replace(held, meta=item.meta) == item
    one, two = (state.tasks.require(each.id).networks[0].network for each in tasks)
    assert one is two


def test_a_malformed_object_is_rejected_alone() -> None:
    """An object of a newer version that this one cannot read rejects its transaction only."""
    driver = Driver2()
    bad = Edit(action=Action.CREATE, table=TableId.TASK, id="x", data=b"\xff")
    other = Edit(action=Action.CREATE, table=TableId.TASK, id="x", data=codec.dumps(Task(id="y")))
    results = driver.entry((bad,), (other,), (create(Task(id="t")),))
    assert [type(each) for each in results] == [WireError, WireError, type(None)]


def test_contradictory_snapshots_are_refused_and_change_nothing() -> None:
    """Two owners of one subnet cannot both be restored."""
    driver = Driver2()
    driver.entry((create(WEB), create(Task(id="t"))))
    message = store_pb2.StoreSnapshot.FromString(driver.machines[0].snapshot())
    message.records.add(table=3, object=codec.dumps(net("x", subnet="10.0.1.0/24")))
    before = driver.machines[0].snapshot()
    with pytest.raises(WireError, match="overlaps"):
        driver.machines[0].restore(9, message.SerializeToString())
    assert driver.machines[0].snapshot() == before
    assert driver.machines[0].index == 1
