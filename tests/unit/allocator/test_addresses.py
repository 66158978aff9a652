"""Addresses of tasks and load balancers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager.allocator import allocate_attachment, allocate_network, sync_node
from manager.store import Transaction
from swarm.errors import (
    ConflictError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
)
from swarm.model import (
    Annotations,
    IPAMConfig,
    IPAMOptions,
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkSpec,
    Node,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

from .conftest import Replicas


def make(replicas: Replicas, name: str, *configs: IPAMConfig, **spec: object) -> Network:
    """Allocate and store a network; its id is its name."""
    wanted = NetworkSpec(
        annotations=Annotations(name=name),
        ipam=IPAMOptions(configs=configs) if configs else None,
        **spec,  # type: ignore[arg-type]  # test shorthand
    )
    return replicas.transact(
        lambda tx: tx.create(allocate_network(tx, Network(id=name, spec=wanted)))
    )


def attach(
    replicas: Replicas, network: Network, task_id: str, *requested: str, node_id: str = ""
) -> tuple[str, ...]:
    """Store a task attached to a network; return its addresses."""

    def build(tx: Transaction) -> tuple[str, ...]:
        addresses = allocate_attachment(tx, network, requested)
        wish = NetworkAttachmentConfig(target=network.id, addresses=requested)
        task = Task(
            id=task_id,
            node_id=node_id,
            spec=TaskSpec(networks=(wish,)),
            networks=(NetworkAttachment(network=network, addresses=addresses),),
        )
        tx.create(task)
        if node_id:
            sync_node(tx, node_id)
        return addresses

    return replicas.transact(build)


def test_first_task_gets_2_and_its_nodes_load_balancer_3(replicas: Replicas) -> None:
    """Ingress addresses come with the node's first attachment; the next task is .4."""
    ingress, web = make(replicas, "ingress", ingress=True), make(replicas, "web")
    replicas.transact(lambda tx: tx.create(Node(id="n1")))
    assert attach(replicas, web, "t1", node_id="n1") == ("10.0.1.2/24",)
    node = replicas.view.nodes.require("n1")
    assert [(each.network.id, each.addresses) for each in node.attachments] == [
        (ingress.id, ("10.0.0.2/24",)),
        (web.id, ("10.0.1.3/24",)),
    ]
    assert attach(replicas, web, "t2", node_id="n1") == ("10.0.1.4/24",)
    assert replicas.view.nodes.require("n1") == node
    assert replicas.view.nodes.by_network("web") == (node,)
    replicas.check()


def test_load_balancer_address_stays_until_the_last_task_has_ended(replicas: Replicas) -> None:
    """An attach before the detach keeps it; the end of the last one frees it."""
    web = make(replicas, "web")
    replicas.transact(lambda tx: tx.create(Node(id="n1")))
    attach(replicas, web, "t1", node_id="n1")
    attach(replicas, web, "t2", node_id="n1")

    def drop(task_id: str) -> tuple[NetworkAttachment, ...]:
        def build(tx: Transaction) -> tuple[NetworkAttachment, ...]:
            tx.delete(task_id)
            return sync_node(tx, "n1").attachments

        return replicas.transact(build)

    assert [each.addresses for each in drop("t1")] == [("10.0.0.3/24",)]
    assert drop("t2") == ()


def test_addresses_come_in_order_and_freed_ones_later(replicas: Replicas) -> None:
    """Also over a restart of the manager."""
    web = make(replicas, "web")
    assert attach(replicas, web, "t1") == ("10.0.0.2/24",)
    replicas.transact(lambda tx: tx.delete("t1"))
    replicas.restore()
    assert attach(replicas, web, "t2") == ("10.0.0.3/24",)


def test_a_freed_address_is_not_given_at_once_even_when_the_order_comes_around(
    replicas: Replicas,
) -> None:
    """Of .2 to .6, .6 was last and .2 was freed just now: .3, freed a minute ago, is next."""
    web = make(replicas, "web", IPAMConfig(subnet="10.5.0.0/29"))
    for number in range(2, 7):
        assert attach(replicas, web, f"t{number}") == (f"10.5.0.{number}/29",)
    replicas.transact(lambda tx: tx.delete("t3"))
    replicas.now += 60_000_000_000
    replicas.transact(lambda tx: tx.delete("t2"))
    assert attach(replicas, web, "a") == ("10.5.0.3/29",)
    # Only the resting one is left: better early than never.
    assert attach(replicas, web, "b") == ("10.5.0.2/29",)
    with pytest.raises(ExhaustedError, match=r"10.5.0.0/29 on network web; .*larger"):
        attach(replicas, web, "c")
    replicas.check()


def test_the_end_of_a_task_frees_its_address(replicas: Replicas) -> None:
    """While the task itself is still kept."""
    web = make(replicas, "web", IPAMConfig(subnet="10.5.0.0/30"))
    attach(replicas, web, "t1")
    with pytest.raises(ExhaustedError):
        attach(replicas, web, "t2")
    task = replicas.view.tasks.require("t1")
    replicas.transact(
        lambda tx: tx.update(replace(task, status=TaskStatus(state=TaskState.RUNNING)))
    )
    with pytest.raises(ExhaustedError):
        attach(replicas, web, "t2")
    task = replicas.view.tasks.require("t1")
    replicas.transact(
        lambda tx: tx.update(replace(task, status=TaskStatus(state=TaskState.COMPLETE)))
    )
    assert attach(replicas, web, "t2") == ("10.5.0.2/30",)
    replicas.check()


@pytest.mark.parametrize("wish", ["10.0.0.77", "10.0.0.77/24", "10.0.0.77/32"])
def test_a_requested_address_is_given(replicas: Replicas, wish: str) -> None:
    """Bare or CIDR; the order of the others is not disturbed, and a restart may have it back."""
    web = make(replicas, "web")
    assert attach(replicas, web, "t1", wish) == ("10.0.0.77/24",)
    assert attach(replicas, web, "t2") == ("10.0.0.2/24",)
    replicas.transact(lambda tx: tx.delete("t1"))
    assert attach(replicas, web, "t3", wish) == ("10.0.0.77/24",)
    replicas.check()


@pytest.mark.parametrize(
    ("wishes", "error", "text"),
    [
        (("10.0.0.50",), ConflictError, "10.0.0.50 on network web is in use by task t1"),
        (("10.0.0.1",), ConflictError, "by the gateway"),
        (("10.0.0.9",), ConflictError, "by the reservation printer"),
        (("10.0.0.0",), ConflictError, "by the network address"),
        (("10.0.0.255",), ConflictError, "by the broadcast address"),
        (("10.0.1.5",), InvalidArgumentError, r"not in network web \(10.0.0.0/24\)"),
        (("fd00::5",), InvalidArgumentError, r"no IPv6 subnet"),
        (("10.0.0.300",), InvalidArgumentError, "not an IP address"),
        (("10.0.0.5", "10.0.0.6"), InvalidArgumentError, "not both"),
        (("10.0.0.5",) * 17, InvalidArgumentError, "at most 16"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_with_the_reason(
    replicas: Replicas, wishes: tuple[str, ...], error: type[SwarmError], text: str
) -> None:
    """Nothing is given instead."""
    config = IPAMConfig(subnet="10.0.0.0/24", reserved={"printer": "10.0.0.9"})
    web = make(replicas, "web", config)
    attach(replicas, web, "t1", "10.0.0.50")
    with pytest.raises(error, match=text):
        attach(replicas, web, "t2", *wishes)
    assert replicas.view.tasks.get("t2") is None


def test_empty_wishes_are_none(replicas: Replicas) -> None:
    """A client that sends an empty address means no wish."""
    assert attach(replicas, make(replicas, "web"), "t1", "") == ("10.0.0.2/24",)


def test_range_is_kept_to(replicas: Replicas) -> None:
    """Unasked addresses lie in the range; asked ones may lie anywhere in the subnet."""
    config = IPAMConfig(subnet="10.0.0.0/24", range="10.0.0.64/31")
    web = make(replicas, "web", config)
    assert attach(replicas, web, "t1") == ("10.0.0.64/24",)
    assert attach(replicas, web, "t2") == ("10.0.0.65/24",)
    with pytest.raises(ExhaustedError):
        attach(replicas, web, "t3")
    assert attach(replicas, web, "t3", "10.0.0.200") == ("10.0.0.200/24",)


def test_further_subnets_are_used_when_the_first_is_full(replicas: Replicas) -> None:
    """In the network's own order."""
    configs = IPAMConfig(subnet="10.0.0.0/30"), IPAMConfig(subnet="10.0.0.4/30")
    web = make(replicas, "web", *configs)
    assert attach(replicas, web, "t1") == ("10.0.0.2/30",)
    assert attach(replicas, web, "t2") == ("10.0.0.6/30",)
    with pytest.raises(ExhaustedError, match=r"10.0.0.0/30, 10.0.0.4/30"):
        attach(replicas, web, "t3")


def test_dual_stack_networks_give_one_of_each(replicas: Replicas) -> None:
    """IPv4 first; either may be asked for."""
    web = make(replicas, "web", IPAMConfig(subnet="fd00:1::/64"), IPAMConfig(subnet="10.0.0.0/24"))
    assert attach(replicas, web, "t1") == ("10.0.0.2/24", "fd00:1::2/64")
    assert attach(replicas, web, "t2", "fd00:1::99") == ("10.0.0.3/24", "fd00:1::99/64")
    assert attach(replicas, web, "t3", "fd00:1::7/64", "10.0.0.9") == (
        "10.0.0.9/24",
        "fd00:1::7/64",
    )
    assert attach(replicas, web, "t4") == ("10.0.0.4/24", "fd00:1::3/64")
    replicas.check()


def test_two_addresses_of_one_transaction_differ_before_either_is_written(
    replicas: Replicas,
) -> None:
    """A promised address is kept for the transaction; unwritten it is free again after it."""
    web = make(replicas, "web")

    def build(tx: Transaction) -> list[str]:
        given = [allocate_attachment(tx, web)[0] for _ in range(3)]
        with pytest.raises(ConflictError):
            allocate_attachment(tx, web, (given[0],))
        tx.create(Task(id="t", networks=(NetworkAttachment(network=web, addresses=(given[1],)),)))
        return given

    assert replicas.transact(build) == ["10.0.0.2/24", "10.0.0.3/24", "10.0.0.4/24"]
    (pool,) = replicas.view.pools("web")
    assert pool.held == 1
    assert attach(replicas, web, "t1", "10.0.0.2") == ("10.0.0.2/24",)
    replicas.check()


def test_unknown_and_unallocated_networks_are_refused(replicas: Replicas) -> None:
    """Each with its own error."""
    with pytest.raises(NotFoundError):
        attach(replicas, Network(id="gone"), "t1")
    bare = Network(id="bare")
    replicas.transact(lambda tx: tx.create(bare))
    with pytest.raises(PreconditionError, match="no subnets yet"):
        attach(replicas, bare, "t1")
