"""VNIs, subnets and gateways."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager.allocator import (
    allocate_attachment,
    allocate_network,
    remove_network,
    sync_node,
    validate_network_spec,
)
from manager.allocator import networks as networks_module
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
    Cluster,
    Driver,
    EndpointSpec,
    IPAMConfig,
    IPAMFamily,
    IPAMOptions,
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkSpec,
    Node,
    PortConfig,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

from .conftest import Replicas

VXLANS = "com.docker.network.driver.overlay.vxlanid_list"


def make(replicas: Replicas, name: str, *configs: IPAMConfig, **spec: object) -> Network:
    """Validate, allocate and store a network; its id is its name."""
    wanted = NetworkSpec(
        annotations=Annotations(name=name),
        ipam=IPAMOptions(configs=configs) if configs else None,
        **spec,  # type: ignore[arg-type]  # test shorthand
    )
    validate_network_spec(wanted)
    return replicas.transact(
        lambda tx: tx.create(allocate_network(tx, Network(id=name, spec=wanted)))
    )


def subnets(network: Network) -> list[str]:
    """The subnets given."""
    assert network.ipam is not None
    return [each.subnet for each in network.ipam.configs]


def gateways(network: Network) -> list[str]:
    """The gateways given."""
    assert network.ipam is not None
    return [each.gateway for each in network.ipam.configs]


def vnis(network: Network) -> str:
    """The list of VNIs as an engine reads it."""
    assert network.driver_state is not None
    return network.driver_state.options[VXLANS]


def test_defaults_are_those_of_swarm(replicas: Replicas) -> None:
    """Ingress gets 4096 and 10.0.0.0/24, the first user network 4097 and 10.0.1.0/24."""
    ingress = make(replicas, "ingress", ingress=True)
    web = make(replicas, "web", driver_config=Driver(name="overlay", options={"encrypted": ""}))
    assert (vnis(ingress), subnets(ingress), gateways(ingress)) == ("4096", ["10.0.0.0/24"], ["10.0.0.1"])  # fmt: skip
    assert (vnis(web), subnets(web), gateways(web)) == ("4097", ["10.0.1.0/24"], ["10.0.1.1"])
    assert web.driver_state == Driver(name="overlay", options={"encrypted": "", VXLANS: "4097"})
    assert web.ipam == IPAMOptions(
        driver=Driver(name="default"),
        configs=(IPAMConfig(family=IPAMFamily.IPV4, subnet="10.0.1.0/24", gateway="10.0.1.1"),),
    )
    assert web.spec.ipam is None  # the spec is never edited
    assert replicas.view.networks.ingress() == replicas.view.networks.get("ingress")
    replicas.check()


def test_subnets_are_lowest_first_and_vnis_are_not(replicas: Replicas) -> None:
    """A freed subnet is given again at once, a freed VNI only after all others."""
    for name in "abc":
        make(replicas, name)
    replicas.transact(lambda tx: remove_network(tx, "b"))
    again = make(replicas, "d")
    assert (subnets(again), vnis(again)) == (["10.0.1.0/24"], "4099")
    replicas.restore()
    replicas.transact(lambda tx: remove_network(tx, "d"))
    assert vnis(make(replicas, "e")) == "4100"


def test_vnis_wrap(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last VNI comes the lowest free one; then there is none."""
    monkeypatch.setattr(networks_module, "MAX_VNI", 4099)
    assert [vnis(make(replicas, name)) for name in "abcd"] == ["4096", "4097", "4098", "4099"]
    with pytest.raises(ExhaustedError, match="no VNI in 4096-4099"):
        make(replicas, "e")
    replicas.transact(lambda tx: remove_network(tx, "b"))
    assert vnis(make(replicas, "e")) == "4097"


def test_a_given_vni_is_honoured_and_does_not_move_the_order(replicas: Replicas) -> None:
    """Taken: refused, naming the network."""
    given = Driver(name="overlay", options={VXLANS: "5000"})
    assert vnis(make(replicas, "a", driver_config=given)) == "5000"
    assert vnis(make(replicas, "b")) == "4096"
    with pytest.raises(ConflictError, match="VNI 5000 is in use by network a"):
        make(replicas, "c", driver_config=given)
    with pytest.raises(InvalidArgumentError, match="1 VNIs for 2 IPv4 subnets"):
        make(replicas, "c", IPAMConfig(), IPAMConfig(), driver_config=Driver(name="overlay", options={VXLANS: "6000"}))  # fmt: skip


def test_given_subnets_are_honoured(replicas: Replicas) -> None:
    """One VNI for each IPv4 subnet; ranges, gateways and reservations stay as given."""
    network = make(
        replicas,
        "web",
        IPAMConfig(subnet="172.28.0.0/16", range="172.28.5.0/24", gateway="172.28.5.254"),
        IPAMConfig(subnet="10.0.0.0/24", reserved={"a": "10.0.0.1", "b": "10.0.0.2"}),
        IPAMConfig(),
    )
    assert subnets(network) == ["172.28.0.0/16", "10.0.0.0/24", "10.0.1.0/24"]
    assert gateways(network) == ["172.28.5.254", "10.0.0.3", "10.0.1.1"]
    assert vnis(network) == "4096,4097,4098"
    assert network.ipam is not None
    assert network.ipam.configs[0].range == "172.28.5.0/24"
    assert network.ipam.configs[1].reserved == {"a": "10.0.0.1", "b": "10.0.0.2"}


def test_a_picked_subnet_avoids_the_given_ones_of_the_same_network(replicas: Replicas) -> None:
    """Whatever their order and size."""
    network = make(
        replicas,
        "web",
        IPAMConfig(),
        IPAMConfig(subnet="10.0.0.0/23"),
        IPAMConfig(subnet="0.0.0.0/25"),
        IPAMConfig(subnet="0.0.0.0/22"),
    )
    assert subnets(network) == ["10.0.2.0/24", "10.0.0.0/23", "10.0.3.0/25", "10.0.4.0/22"]


def test_overlap_names_the_other_network(replicas: Replicas) -> None:
    """Larger, smaller and equal subnets alike."""
    make(replicas, "web", IPAMConfig(subnet="192.168.4.0/24"))
    for subnet in ("192.168.0.0/16", "192.168.4.0/24", "192.168.4.64/26"):
        with pytest.raises(ConflictError, match=r"192.168.4.0/24 of network web"):
            make(replicas, "other", IPAMConfig(subnet=subnet))
    make(replicas, "other", IPAMConfig(subnet="192.168.5.0/24"))


def test_the_clusters_pools_are_used_in_order(replicas: Replicas) -> None:
    """Then the pool is exhausted, and the text says what would help."""
    pool = ("172.30.0.0/25", "192.168.9.0/26")
    replicas.transact(
        lambda tx: tx.create(Cluster(id="c", default_address_pool=pool, subnet_size=26))
    )
    assert [subnets(make(replicas, name))[0] for name in "abc"] == [
        "172.30.0.0/26",
        "172.30.0.64/26",
        "192.168.9.0/26",
    ]
    with pytest.raises(
        ExhaustedError,
        match=r"no free /26 .* 172.30.0.0/25, 192.168.9.0/26; remove .*--default-addr-pool",
    ):
        make(replicas, "d")
    with pytest.raises(ExhaustedError, match="no free /24"):
        make(replicas, "d", IPAMConfig(subnet="0.0.0.0/24"))
    assert subnets(make(replicas, "d", IPAMConfig(subnet="10.0.0.0/24"))) == ["10.0.0.0/24"]
    replicas.transact(lambda tx: remove_network(tx, "b"))
    assert subnets(make(replicas, "e")) == ["172.30.0.64/26"]


def test_dual_stack(replicas: Replicas) -> None:
    """An IPv6 network gets a /64 of the cluster's own unique local prefix; IPv4 stands first."""
    replicas.transact(lambda tx: tx.create(Cluster(id="cluster-1")))
    one = make(replicas, "one", ipv6_enabled=True)
    two = make(replicas, "two", IPAMConfig(subnet="fd99::/64", gateway="fd99::5"))
    three = make(replicas, "three", ipv6_enabled=True)
    first, second = subnets(one)
    assert first == "10.0.0.0/24"
    assert second.startswith("fd")
    assert second.endswith("::/64")
    assert gateways(one)[1] == second.removesuffix("/64") + "1"
    assert vnis(one) == "4096"  # one for each IPv4 subnet
    assert subnets(two) == ["10.0.1.0/24", "fd99::/64"]
    assert gateways(two) == ["10.0.1.1", "fd99::5"]
    assert subnets(three)[1] == second.replace("::/64", ":1::/64")


def test_ipv6_pools_of_the_cluster(replicas: Replicas) -> None:
    """An IPv6 pool serves IPv6 only; IPv4 keeps its default."""
    replicas.transact(lambda tx: tx.create(Cluster(id="c", default_address_pool=("fd00:5::/63",))))
    assert subnets(make(replicas, "a", ipv6_enabled=True)) == ["10.0.0.0/24", "fd00:5::/64"]
    assert subnets(make(replicas, "b", ipv6_enabled=True)) == ["10.0.1.0/24", "fd00:5:0:1::/64"]
    with pytest.raises(ExhaustedError, match="no free /64"):
        make(replicas, "c", ipv6_enabled=True)


@pytest.mark.parametrize("driver", ["bridge", "host", "macvlan", "ipvlan"])
def test_node_local_networks_get_nothing(replicas: Replicas, driver: str) -> None:
    """Driver state is the name alone, ipam an empty driver; no VNI, no subnet."""
    network = make(replicas, "local", driver_config=Driver(name=driver, options={"parent": "e"}))
    assert network.driver_state == Driver(name=driver)
    assert network.ipam == IPAMOptions(driver=Driver())
    assert replicas.transact(lambda tx: allocate_attachment(tx, network)) == ()
    with pytest.raises(InvalidArgumentError, match=driver):
        replicas.transact(lambda tx: allocate_attachment(tx, network, ("10.0.0.5",)))


def test_a_second_ingress_network_and_a_taken_name_are_conflicts(replicas: Replicas) -> None:
    """Both are found before anything is written."""
    make(replicas, "ingress", ingress=True)
    with pytest.raises(ConflictError, match="ingress network"):
        make(replicas, "other", ingress=True)
    spec = NetworkSpec(annotations=Annotations(name="INGRESS"))
    with pytest.raises(ConflictError, match="network with name INGRESS already exists"):
        replicas.transact(lambda tx: allocate_network(tx, Network(id="x", spec=spec)))


def test_reservations_may_leave_no_gateway(replicas: Replicas) -> None:
    """A /30 with both addresses reserved has no room."""
    reserved = {"a": "10.0.0.1", "b": "10.0.0.2"}
    with pytest.raises(InvalidArgumentError, match="no gateway"):
        make(replicas, "web", IPAMConfig(subnet="10.0.0.0/30", reserved=reserved))


def refused(replicas: Replicas, network_id: str) -> SwarmError:
    """Remove a network that may not be removed."""
    with pytest.raises(SwarmError) as caught:
        replicas.transact(lambda tx: remove_network(tx, network_id))
    return caught.value


def test_a_network_in_use_stays(replicas: Replicas) -> None:
    """Services and living tasks keep it; ended tasks and load balancers do not."""
    assert isinstance(refused(replicas, "gone"), NotFoundError)
    web = make(replicas, "web")
    target = TaskSpec(networks=(NetworkAttachmentConfig(target="web"),))
    service = Service(id="s", spec=ServiceSpec(task=target))
    replicas.transact(lambda tx: tx.create(service))
    error = refused(replicas, "web")
    assert isinstance(error, PreconditionError)
    assert str(error) == "network web is in use by service s"
    replicas.transact(lambda tx: tx.delete("s"))

    def attach(tx: object) -> None:
        addresses = allocate_attachment(tx, web)  # type: ignore[arg-type]  # a transaction
        attachment = NetworkAttachment(network=web, addresses=addresses)
        tx.create(Node(id="n"))  # type: ignore[attr-defined]  # a transaction
        tx.create(Task(id="t", node_id="n", networks=(attachment,)))  # type: ignore[attr-defined]  # a transaction
        sync_node(tx, "n")  # type: ignore[arg-type]  # a transaction

    replicas.transact(attach)
    assert str(refused(replicas, "web")) == "network web is in use by task t"
    task = replicas.view.tasks.require("t")
    ended = replace(task, status=TaskStatus(state=TaskState.SHUTDOWN))
    replicas.transact(lambda tx: tx.update(ended))
    assert replicas.view.nodes.require("n").attachments
    replicas.transact(lambda tx: remove_network(tx, "web"))
    assert not replicas.view.nodes.require("n").attachments
    replicas.check()


def test_the_ingress_network_stays_while_a_service_publishes_through_it(
    replicas: Replicas,
) -> None:
    """Published ports need it."""
    make(replicas, "ingress", ingress=True)
    spec = ServiceSpec(
        annotations=Annotations(name="web"),
        endpoint=EndpointSpec(ports=(PortConfig(target_port=80),)),
    )
    replicas.transact(lambda tx: tx.create(Service(id="s", spec=spec)))
    assert "service web depends on it" in str(refused(replicas, "ingress"))


@pytest.mark.parametrize("value", ["false", "0", "no", "OFF"])
def test_encrypted_false_is_not_encrypted_anywhere(replicas: Replicas, value: str) -> None:
    """Engines look only at the option's presence, so nodes are not told it; the spec stays as typed."""
    wanted = Driver(
        name="overlay", options={"encrypted": value, "com.docker.network.driver.mtu": "1400"}
    )
    web = make(replicas, "web", driver_config=wanted)
    assert web.driver_state is not None
    assert "encrypted" not in web.driver_state.options
    assert web.driver_state.options["com.docker.network.driver.mtu"] == "1400"
    assert web.spec.driver_config == wanted
