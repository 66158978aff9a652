"""Random histories of networks and attachments against plain sets."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from manager.allocator import (
    allocate_attachment,
    allocate_network,
    remove_network,
    sync_node,
    validate_network_spec,
)
from manager.store import Transaction
from swarm.errors import ConflictError, ExhaustedError, InvalidArgumentError, PreconditionError
from swarm.model import (
    Annotations,
    Cluster,
    IPAMConfig,
    IPAMOptions,
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkSpec,
    Node,
    Task,
    TaskSpec,
)

from .conftest import Replicas

POOL = ip_network("10.9.0.0/26")
NODES = ("n1", "n2")


class Histories(RuleBasedStateMachine):
    """Sixteen /29 subnets at most, five addresses each; everything is found by looking at it all."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = Replicas()
        self.serial = 0
        self.freed: dict[tuple[str, str], int] = {}

    @initialize()
    def start(self) -> None:
        """A cluster with a small pool and two nodes."""

        def build(tx: Transaction) -> None:
            tx.create(Cluster(id="c", default_address_pool=(str(POOL),), subnet_size=29))
            for node in NODES:
                tx.create(Node(id=node))

        self.replicas.transact(build)

    def subnets(self) -> dict[str, list[str]]:
        """Network id to its subnets."""
        return {
            each.id: [config.subnet for config in each.ipam.configs] if each.ipam else []
            for each in self.replicas.view.networks
        }

    def addresses(self) -> list[tuple[str, str]]:
        """(network, address) of every attachment there is, one for each holder."""
        view = self.replicas.view
        held = [(entry, task.id) for task in view.tasks for entry in task.networks]
        held += [(entry, node.id) for node in view.nodes for entry in node.attachments]
        return [(entry.network.id, text) for entry, _ in held for text in entry.addresses]

    @rule(
        given=st.none() | st.integers(0, 20),
        length=st.sampled_from((28, 29, 30)),
        ingress=st.booleans(),
    )
    def create_network(self, given: int | None, length: int, ingress: bool) -> None:
        """A network, of its own subnet or of the pool."""
        self.serial += 1
        taken = [ip_network(each) for all_ in self.subnets().values() for each in all_]
        configs: tuple[IPAMConfig, ...] = ()
        if given is not None:
            subnet = ip_network((int(POOL.network_address) + given * (1 << (32 - length)), length))
            configs = (IPAMConfig(subnet=str(subnet)),)
            expect = not any(subnet.overlaps(each) for each in taken)
        else:
            free = [e for e in POOL.subnets(new_prefix=29) if not any(e.overlaps(t) for t in taken)]
            expect = bool(free)
        expect = expect and not (ingress and self.replicas.view.networks.ingress())
        name = f"net{self.serial}"
        spec = NetworkSpec(
            annotations=Annotations(name=name), ipam=IPAMOptions(configs=configs), ingress=ingress
        )
        validate_network_spec(spec)
        network = Network(id=name, spec=spec)
        try:
            made = self.replicas.transact(lambda tx: tx.create(allocate_network(tx, network)))
        except (ConflictError, ExhaustedError):
            assert not expect
            return
        assert expect
        assert made.ipam is not None
        if given is None:
            assert ip_network(made.ipam.configs[0].subnet) == free[0]

    @precondition(lambda self: self.subnets())
    @rule(data=st.data())
    def delete_network(self, data: st.DataObject) -> None:
        """Only without tasks on it."""
        network_id = data.draw(st.sampled_from(sorted(self.subnets())))
        used = any(
            entry.network.id == network_id
            for task in self.replicas.view.tasks
            for entry in task.networks
        )
        try:
            self.replicas.transact(lambda tx: remove_network(tx, network_id))
        except PreconditionError:
            assert used
        else:
            assert not used
            self.freed = {key: when for key, when in self.freed.items() if key[0] != network_id}

    @precondition(lambda self: self.subnets())
    @rule(data=st.data(), node=st.sampled_from(NODES), wish=st.none() | st.integers(0, 7))
    def attach(self, data: st.DataObject, node: str, wish: int | None) -> None:
        """A task on a node, with a wish or without, and the node's load balancer address."""
        network_id = data.draw(st.sampled_from(sorted(self.subnets())))
        network = self.replicas.view.networks.require(network_id)
        subnet = ip_network(self.subnets()[network_id][0])
        before = set(self.addresses())
        assert network.ipam is not None
        gateway = network.ipam.configs[0].gateway
        held = {ip_interface(text).ip for net, text in before if net == network_id}
        free = [each for each in subnet.hosts() if each not in held and str(each) != gateway]
        requested = () if wish is None else (str(subnet.network_address + wish),)
        asked = [ip_address(each) for each in requested]
        self.serial += 1
        task_id = f"t{self.serial}"

        def build(tx: Transaction) -> str:
            (address,) = allocate_attachment(tx, network, requested)
            config = NetworkAttachmentConfig(target=network_id, addresses=requested)
            attachment = NetworkAttachment(network=network, addresses=(address,))
            tx.create(
                Task(
                    id=task_id,
                    node_id=node,
                    spec=TaskSpec(networks=(config,)),
                    networks=(attachment,),
                )
            )
            return address

        try:
            address = ip_interface(self.replicas.transact(build))
        except ExhaustedError:
            assert not free
        except ConflictError:
            assert asked[0] not in free
        except InvalidArgumentError:
            assert asked
            assert asked[0] not in subnet
        else:
            assert address.ip in free
            assert address.network == subnet
            if asked:
                assert [address.ip] == asked
            else:
                self.check_rest(
                    network_id, str(address), [f"{each}/{subnet.prefixlen}" for each in free]
                )
        self.sync(node)

    def check_rest(self, network_id: str, given: str, free: list[str]) -> None:
        """A resting address is given only when all free ones rest, and then the oldest."""
        border = self.replicas.now - 60_000_000_000
        freed = {each: self.freed.get((network_id, each), border) for each in free}
        if freed[given] > border:
            assert freed[given] == min(freed.values())

    @precondition(lambda self: len(self.replicas.view.tasks))
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        """Delete a task; its node keeps what other tasks need."""
        tasks = {task.id: task for task in self.replicas.view.tasks}
        task = tasks[data.draw(st.sampled_from(sorted(tasks)))]
        self.replicas.transact(lambda tx: tx.delete(task.id))
        for entry in task.networks:
            for text in entry.addresses:
                self.freed[entry.network.id, text] = self.replicas.now
        self.sync(task.node_id)

    def sync(self, node: str) -> None:
        """Bring a node's load balancer addresses up to date."""
        before = set(self.addresses())
        try:
            self.replicas.transact(lambda tx: sync_node(tx, node))
        except ExhaustedError:
            return
        for key in before - set(self.addresses()):
            self.freed[key] = self.replicas.now
        view = self.replicas.view
        wanted = {entry.network.id for task in view.tasks.by_node(node) for entry in task.networks}
        ingress = view.networks.ingress()
        wanted |= {ingress.id} if ingress else set()
        assert {entry.network.id for entry in view.nodes.require(node).attachments} == wanted

    @rule(seconds=st.integers(1, 90))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.replicas.now += seconds * 1_000_000_000

    @rule()
    def restart(self) -> None:
        """The leader is restored from its snapshot."""
        self.replicas.restore()

    @invariant()
    def nothing_is_given_twice(self) -> None:
        """Addresses, subnets and VNIs are unique, in range, and the same on both replicas."""
        self.replicas.check()
        held = self.addresses()
        assert len(set(held)) == len(held)
        subnets = self.subnets()
        for network_id, text in held:
            assert str(ip_interface(text).network) in subnets[network_id]
        flat = [ip_network(each) for all_ in subnets.values() for each in all_]
        for number, one in enumerate(flat):
            assert not any(one.overlaps(other) for other in flat[:number])
        vnis = [
            each.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"]
            for each in self.replicas.view.networks
            if each.driver_state
        ]
        assert len(set(vnis)) == len(vnis)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
