"""Virtual addresses and published ports, on two replicas."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.allocator import (
    HIGHEST_PORT,
    LOWEST_PORT,
    allocate_endpoint,
    allocate_network,
    needs_ingress,
)
from manager.store import Transaction
from swarm.errors import ConflictError, ExhaustedError, PreconditionError
from swarm.model import (
    Annotations,
    Endpoint,
    EndpointResolutionMode,
    EndpointSpec,
    Network,
    NetworkSpec,
    PortConfig,
    PortProtocol,
    PublishMode,
    Service,
    ServiceSpec,
    VirtualIP,
)

from .conftest import Replicas

HOST = PublishMode.HOST


def network(replicas: Replicas, name: str, **spec: object) -> Network:
    wanted = NetworkSpec(annotations=Annotations(name=name), **spec)  # type: ignore[arg-type]  # test shorthand
    return replicas.transact(
        lambda tx: tx.create(allocate_network(tx, Network(id=name, spec=wanted)))
    )


def port(target: int, published: int = 0, mode: PublishMode = PublishMode.INGRESS) -> PortConfig:
    return PortConfig(target_port=target, published_port=published, publish_mode=mode)


def serve(
    replicas: Replicas,
    name: str,
    *ports: PortConfig,
    on: tuple[Network, ...] = (),
    mode: EndpointResolutionMode = EndpointResolutionMode.VIP,
) -> Endpoint:
    """Create or change a service; its endpoint."""

    def build(tx: Transaction) -> Endpoint:
        spec = ServiceSpec(
            annotations=Annotations(name=name), endpoint=EndpointSpec(ports=ports, mode=mode)
        )
        present = tx.services.get(name)
        service = replace(present, spec=spec) if present else Service(id=name, spec=spec)
        endpoint = allocate_endpoint(tx, service, on)
        service = replace(service, endpoint=endpoint)
        if present:
            tx.update(service)
        else:
            tx.create(service)
        return endpoint

    return replicas.transact(build)


def published(endpoint: Endpoint) -> list[int]:
    return [each.published_port for each in endpoint.ports]


def test_one_virtual_address_a_network_and_one_on_ingress_when_published(
    replicas: Replicas,
) -> None:
    ingress, blue = network(replicas, "ingress", ingress=True), network(replicas, "blue")
    bare = serve(replicas, "a", on=(blue,))
    assert bare.virtual_ips == (VirtualIP(network_id=blue.id, addr="10.0.1.2/24"),)
    meshed = serve(replicas, "b", port(80), on=(blue,))
    assert [each.network_id for each in meshed.virtual_ips] == [ingress.id, blue.id]
    hosted = serve(replicas, "c", port(80, mode=HOST), on=(blue,))
    assert [each.network_id for each in hosted.virtual_ips] == [blue.id]
    listed = serve(replicas, "d", on=(blue,), mode=EndpointResolutionMode.DNSRR)
    assert listed.virtual_ips == ()


def test_dual_stack_has_both_ipv4_first(replicas: Replicas) -> None:
    six = network(replicas, "six", ipv6_enabled=True)
    first, second = serve(replicas, "a", on=(six,)).virtual_ips
    assert "." in first.addr
    assert ":" in second.addr


def test_node_local_networks_have_none(replicas: Replicas) -> None:
    from swarm.model import Driver

    local = network(replicas, "local", driver_config=Driver(name="bridge"))
    assert serve(replicas, "a", on=(local,)).virtual_ips == ()


def test_publishing_needs_the_ingress_network(replicas: Replicas) -> None:
    with pytest.raises(PreconditionError, match="no ingress network"):
        serve(replicas, "a", port(80))
    assert not needs_ingress(ServiceSpec(endpoint=EndpointSpec(ports=(port(80, mode=HOST),))))


class TestPorts:
    """From the range in order, for each protocol by itself; asked ones first; sticky."""

    @pytest.fixture(autouse=True)
    def ingress(self, replicas: Replicas) -> None:
        network(replicas, "ingress", ingress=True)

    def test_in_order_and_wrapping(self, replicas: Replicas) -> None:
        assert published(serve(replicas, "a", port(1), port(2))) == [30000, 30001]
        serve(replicas, "last", port(1, HIGHEST_PORT))
        replicas.transact(lambda tx: _set_last(tx, HIGHEST_PORT - 1))
        assert published(serve(replicas, "b", port(1))) == [30002]
        replicas.restore()
        assert published(serve(replicas, "c", port(1))) == [30003]
        replicas.check()

    def test_protocols_do_not_touch(self, replicas: Replicas) -> None:
        ports = [replace(port(53), protocol=protocol) for protocol in PortProtocol]
        assert published(serve(replicas, "dns", *ports)) == [LOWEST_PORT] * 3

    def test_a_full_range_is_said(self, replicas: Replicas) -> None:
        size = HIGHEST_PORT - LOWEST_PORT + 1
        for start in range(0, size, 256):
            count = min(256, size - start)
            serve(replicas, f"s{start}", *(port(each + 1) for each in range(count)))
        with pytest.raises(ExhaustedError, match="no tcp port in 30000-32767"):
            serve(replicas, "one-more", port(1))
        udp = replace(port(1), protocol=PortProtocol.UDP)
        assert published(serve(replicas, "udp", udp)) == [LOWEST_PORT]

    def test_conflicts_name_the_other_service(self, replicas: Replicas) -> None:
        serve(replicas, "web", port(80, 8080))
        serve(replicas, "hosted", port(80, 9090, HOST))
        for wanted, words in (
            (port(1, 8080), "service 'web' (web) as an ingress port"),
            (port(1, 8080, HOST), "service 'web' (web) as an ingress port"),
            (port(1, 9090), "service 'hosted' (hosted) as a host-published port"),
        ):
            with pytest.raises(ConflictError) as refusal:
                serve(replicas, "other", wanted)
            assert words in str(refusal.value)
        serve(replicas, "hosted-too", port(80, 9090, HOST))
        serve(replicas, "web", port(81, 8080))

    def test_a_picked_port_does_not_meet_a_host_port(self, replicas: Replicas) -> None:
        serve(replicas, "hosted", port(80, LOWEST_PORT, HOST))
        assert published(serve(replicas, "web", port(80))) == [LOWEST_PORT + 1]

    @given(
        st.lists(
            st.lists(
                st.tuples(st.integers(1, 4), st.sampled_from([0, 0, 30000, 30001, 8080])),
                max_size=4,
                unique_by=lambda each: each[1] or object(),
            ),
            min_size=1,
            max_size=8,
        )
    )
    def test_updates_keep_numbers_and_never_clash(
        self, updates: list[list[tuple[int, int]]]
    ) -> None:
        replicas = Replicas()
        network(replicas, "ingress", ingress=True)
        other = published(serve(replicas, "other", port(1), port(2)))
        before: dict[int, list[int]] = {}
        for wanted in updates:
            ports = [port(target, number) for target, number in wanted]
            try:
                endpoint = serve(replicas, "web", *ports)
            except ConflictError:
                continue
            numbers = published(endpoint)
            assert len(set(numbers)) == len(numbers)
            assert not set(numbers) & set(other)
            given_now: dict[int, list[int]] = {}
            asked = {number for _, number in wanted}
            for (target, asked_one), number in zip(wanted, numbers, strict=True):
                if not asked_one:
                    given_now.setdefault(target, []).append(number)
            for target, kept in given_now.items():
                old = [each for each in before.get(target, []) if each not in asked]
                assert kept[: len(old)] == old[: len(kept)]
            before = given_now
        replicas.check()


def _set_last(tx: Transaction, number: int) -> None:
    """Move the order on, as a service that came and went would."""
    spec = ServiceSpec(
        annotations=Annotations(name="gone"), endpoint=EndpointSpec(ports=(port(1),))
    )
    endpoint = Endpoint(spec=spec.endpoint, ports=(port(1, number),))
    tx.delete(tx.create(Service(id="gone", spec=spec, endpoint=endpoint)))
