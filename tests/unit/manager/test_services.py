"""Control's services over a real manager: what is refused and how, what is allocated, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swarm.api.docker.swarmkit import control_pb2, specs_pb2, types_pb2
from swarm.api.overswarm.v1 import scheduler_pb2

pytestmark = pytest.mark.slow

Code = Callable[..., Any]
TCP, UDP = types_pb2.PORT_PROTOCOL_TCP, types_pb2.PORT_PROTOCOL_UDP
INGRESS, HOST = types_pb2.PUBLISH_MODE_INGRESS, types_pb2.PUBLISH_MODE_HOST
VIP = types_pb2.ENDPOINT_RESOLUTION_MODE_VIP
DNSRR = types_pb2.ENDPOINT_RESOLUTION_MODE_DNSRR


def port(target: int, published: int = 0, protocol: Any = TCP, mode: Any = INGRESS) -> Any:
    return types_pb2.PortConfig(
        protocol=protocol, target_port=target, published_port=published, publish_mode=mode
    )


def spec(
    name: str, *networks: str, ports: tuple[Any, ...] = (), mode: Any = VIP, replicas: int = 1
) -> specs_pb2.ServiceSpec:
    made = specs_pb2.ServiceSpec(
        annotations=types_pb2.Annotations(name=name, labels={"team": "blue"}),
        endpoint=types_pb2.EndpointSpec(mode=mode, ports=ports),
    )
    made.task.container.image = "nginx:1"
    made.task.container.env.append("A=1")
    made.task.networks.extend(types_pb2.NetworkAttachmentConfig(target=each) for each in networks)
    made.replicated.replicas = replicas
    return made


async def create(swarm: Any, made: specs_pb2.ServiceSpec) -> Any:
    answer = await swarm.control.CreateService(control_pb2.CreateServiceRequest(spec=made))
    return answer.service


async def update(swarm: Any, service: Any, made: Any = None, *, back: bool = False) -> Any:
    request = control_pb2.UpdateServiceRequest(
        service_id=service.id,
        service_version=service.meta.version,
        spec=made,
        rollback=control_pb2.UpdateServiceRequest.PREVIOUS
        if back
        else control_pb2.UpdateServiceRequest.NONE,
    )
    return (await swarm.control.UpdateService(request)).service


def vips(service: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in service.endpoint.virtual_ips:
        found.setdefault(each.network_id, []).append(each.addr)
    return found


def published(service: Any) -> list[int]:
    return [each.published_port for each in service.endpoint.ports]


async def test_a_service_comes_back_as_it_was_sent_and_with_its_endpoint(swarm: Any) -> None:
    blue, green = await swarm.network("blue"), await swarm.network("green", ipv6_enabled=True)
    sent = spec("web", "blue", green.id, ports=(port(80), port(53, protocol=UDP)), replicas=3)
    sent.task.container.mounts.append(b"\x0a\x01x")
    sent.task.resources.reservations.nano_cpus = 5
    sent.task.restart.max_attempts = 3
    sent.task.placement.constraints.append("node.role==worker")
    sent.task.force_update = 7
    sent.update.parallelism = 2
    sent.rollback.parallelism = 3
    service = await create(swarm, sent)
    assert service.spec == sent
    assert service.HasField("spec_version")
    ingress = swarm.view.networks.ingress().id
    assert vips(service).keys() == {ingress, blue.id, green.id}
    assert vips(service)[blue.id] == ["10.0.1.2/24"]
    v4, v6 = vips(service)[green.id]
    assert v4 == "10.0.2.2/24"
    assert ":" in v6
    assert published(service) == [30000, 30000]  # each protocol by itself
    got = await swarm.control.GetService(control_pb2.GetServiceRequest(service_id=service.id))
    assert got.service == service
    listed = await swarm.control.ListServices(control_pb2.ListServicesRequest())
    assert list(listed.services) == [service]
    task = await create(swarm, spec("plain"))
    assert vips(task) == {}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda s: s.annotations.ClearField("name"), "INVALID_ARGUMENT", "name must be provided"),
        (lambda s: setattr(s.annotations, "name", "a" * 64), "INVALID_ARGUMENT", "63 characters"),
        (lambda s: setattr(s.annotations, "name", "a.b"), "INVALID_ARGUMENT", "DNS name"),
        (lambda s: setattr(s.annotations, "name", "-a"), "INVALID_ARGUMENT", "DNS name"),
        (lambda s: s.ClearField("replicated"), "INVALID_ARGUMENT", "service mode"),
        (lambda s: s.task.ClearField("container"), "INVALID_ARGUMENT", "missing runtime"),
        (lambda s: s.task.container.ClearField("image"), "INVALID_ARGUMENT", "image reference"),
        (lambda s: s.task.attachment.SetInParent(), "UNIMPLEMENTED", "unimplemented runtime"),
        (lambda s: s.task.networks.add(target="nowhere"), "NOT_FOUND", "network nowhere not"),
        (lambda s: s.task.networks.add(target="ingress"), "INVALID_ARGUMENT", "ingress network"),
        (lambda s: s.task.networks.add(target="blue"), "INVALID_ARGUMENT", "given twice"),
        (lambda s: s.networks.add(target="blue"), "INVALID_ARGUMENT", "networks are given"),
        (lambda s: s.endpoint.ports.add(published_port=1), "INVALID_ARGUMENT", "target port"),
        (
            lambda s: s.endpoint.ports.add(target_port=1, published_port=65536),
            "INVALID_ARGUMENT",
            "65536 is no port",
        ),
        (
            lambda s: s.endpoint.ports.extend([port(1, 81), port(2, 81)]),
            "INVALID_ARGUMENT",
            "duplicate published ports",
        ),
        (
            lambda s: (s.endpoint.ports.append(port(80)), setattr(s.endpoint, "mode", DNSRR)),
            "INVALID_ARGUMENT",
            "dnsrr mode",
        ),
        (
            lambda s: setattr(s.update, "max_failure_ratio", 1.5),
            "INVALID_ARGUMENT",
            "bigger than 1",
        ),
        (lambda s: s.update.delay.FromSeconds(-1), "INVALID_ARGUMENT", "cannot be negative"),
        (
            lambda s: s.task.container.env.extend(["x" * 1024] * 300),
            "INVALID_ARGUMENT",
            "larger than",
        ),
        (lambda s: setattr(s.task.generic, "kind", "ab"), "INVALID_ARGUMENT", "Invalid name"),
        (lambda s: setattr(s.task.generic, "kind", "attachment"), "INVALID_ARGUMENT", "reserved"),
        (lambda s: setattr(s.task.generic, "kind", "wasm"), "INVALID_ARGUMENT", "missing payload"),
    ],
)
async def test_what_can_never_be_right_is_refused_in_words(
    swarm: Any, code_of: Code, change: Callable[[Any], object], code: str, words: str
) -> None:
    await swarm.network("blue")
    made = spec("web", "blue")
    change(made)
    refused, text = await code_of(create(swarm, made))
    assert (refused, words in text) == (code, True), text
    assert not swarm.view.services.all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "command is empty"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"argv": ["a"], "env": ["=x"]}, "KEY=VALUE"),
        ({"argv": ["a"], "hostname": "a b"}, "hostname"),
    ],
)
async def test_a_process_that_cannot_start_is_refused(
    swarm: Any, code_of: Code, fields: dict[str, Any], words: str
) -> None:
    made = spec("web")
    made.task.generic.kind = "process"
    made.task.generic.payload.Pack(scheduler_pb2.Process(**fields))
    code, text = await code_of(create(swarm, made))
    assert (code, words in text) == ("INVALID_ARGUMENT", True), text
    made.task.generic.payload.Pack(types_pb2.Version(index=1))
    assert "carries overswarm.v1.Process" in (await code_of(create(swarm, made)))[1]
    made.task.generic.payload.Pack(scheduler_pb2.Process(argv=["sleep", "1"], env=["A="]))
    assert (await create(swarm, made)).spec == made


async def test_names_are_one_services_alone_whatever_their_case(swarm: Any, code_of: Code) -> None:
    await create(swarm, spec("web"))
    code, text = await code_of(create(swarm, spec("WEB")))
    assert (code, text) == ("ALREADY_EXISTS", "service WEB already exists")


class TestPorts:
    """Published ports are one service's alone, on every node or on hosts; sticky; in order."""

    async def test_a_taken_port_is_refused_with_its_holders_name(
        self, swarm: Any, code_of: Code
    ) -> None:
        await create(swarm, spec("web", ports=(port(80, 8080),)))
        await create(swarm, spec("dns", ports=(port(80, 8080, UDP),)))
        for mode in (INGRESS, HOST):
            taken = spec("other", ports=(port(1, 8080, mode=mode),))
            code, text = await code_of(create(swarm, taken))
            assert code == "INVALID_ARGUMENT"
            assert "port '8080' (tcp) is already in use by service 'web'" in text
            assert "as an ingress port" in text

    async def test_host_ports_exclude_ingress_but_not_each_other(
        self, swarm: Any, code_of: Code
    ) -> None:
        first = await create(swarm, spec("a", ports=(port(1, 8080, mode=HOST),)))
        assert vips(first) == {}  # nothing is published on the mesh
        await create(swarm, spec("b", ports=(port(1, 8080, mode=HOST),)))
        code, text = await code_of(create(swarm, spec("c", ports=(port(1, 8080),))))
        assert (code, "host-published port" in text) == ("INVALID_ARGUMENT", True)

    async def test_given_ports_stay_with_their_service_and_are_not_given_again_at_once(
        self, swarm: Any
    ) -> None:
        web = await create(swarm, spec("web", ports=(port(80), port(81))))
        assert published(web) == [30000, 30001]
        web = await update(swarm, web, spec("web", ports=(port(81), port(82), port(80, 99))))
        assert published(web) == [30001, 30002, 99]
        await swarm.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=web.id))
        other = await create(swarm, spec("other", ports=(port(80),)))
        assert published(other) == [30003]

    async def test_a_wished_port_of_the_range_is_stepped_over(self, swarm: Any) -> None:
        await create(swarm, spec("a", ports=(port(1, 30000), port(2))))
        web = await create(swarm, spec("b", ports=(port(1), port(2, 30003), port(3))))
        assert published(web) == [30002, 30003, 30004]

    async def test_order_survives_a_restart(self, swarm: Any) -> None:
        web = await create(swarm, spec("web", ports=(port(1),)))
        await swarm.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=web.id))
        await swarm.stop()
        await swarm.start()
        assert published(await create(swarm, spec("web", ports=(port(1),)))) == [30001]

    async def test_a_service_without_ingress_network_is_told(
        self, swarm: Any, code_of: Code
    ) -> None:
        ingress = swarm.view.networks.ingress().id
        await swarm.control.RemoveNetwork(control_pb2.RemoveNetworkRequest(network_id=ingress))
        code, text = await code_of(create(swarm, spec("web", ports=(port(1),))))
        assert (code, "no ingress network" in text) == ("FAILED_PRECONDITION", True)


class TestUpdates:
    """Versions, what cannot change, what stays, and the way back."""

    async def test_addresses_stay_while_networks_do(self, swarm: Any) -> None:
        blue, green = await swarm.network("blue"), await swarm.network("green")
        web = await create(swarm, spec("web", "blue"))
        before = vips(web)[blue.id]
        both = await update(swarm, web, spec("web", "green", "blue"))
        assert vips(both)[blue.id] == before
        assert both.previous_spec == web.spec
        assert both.spec_version == web.meta.version
        one = await update(swarm, both, spec("web", "green"))
        assert vips(one) == {green.id: vips(both)[green.id]}
        none = await update(swarm, one, spec("web", "green", mode=DNSRR))
        assert vips(none) == {}
        back = await update(swarm, none, back=True)
        assert back.spec == one.spec
        assert back.previous_spec == none.spec
        assert vips(back).keys() == {green.id}

    async def test_an_old_version_is_refused(self, swarm: Any, code_of: Code) -> None:
        web = await create(swarm, spec("web"))
        await update(swarm, web, spec("web", replicas=2))
        code, text = await code_of(update(swarm, web, spec("web", replicas=3)))
        assert (code, text) == ("UNKNOWN", "update out of sequence")

    async def test_what_cannot_change(self, swarm: Any, code_of: Code) -> None:
        web = await create(swarm, spec("web"))
        renamed, other_mode = spec("other"), spec("web")
        getattr(other_mode, "global").SetInParent()
        for made, words in ((renamed, "renaming"), (other_mode, "mode change")):
            code, text = await code_of(update(swarm, web, made))
            assert (code, words in text) == ("UNIMPLEMENTED", True)
        code, text = await code_of(update(swarm, web, back=True))
        assert (code, "previous spec" in text) == ("FAILED_PRECONDITION", True)
        for request, expected in (
            (control_pb2.UpdateServiceRequest(service_id="x"), "INVALID_ARGUMENT"),
            (
                control_pb2.UpdateServiceRequest(
                    service_id="x", service_version=types_pb2.Version(index=1), spec=spec("web")
                ),
                "NOT_FOUND",
            ),
        ):
            assert (await code_of(swarm.control.UpdateService(request)))[0] == expected

    async def test_an_update_that_changes_nothing_keeps_the_version(self, swarm: Any) -> None:
        web = await create(swarm, spec("web"))
        same = await update(swarm, web, spec("web"))
        assert same.meta.version == web.meta.version
        assert not same.HasField("previous_spec")


async def test_a_network_stays_while_a_service_names_it(swarm: Any, code_of: Code) -> None:
    blue = await swarm.network("blue")
    web = await create(swarm, spec("web", "blue"))
    remove = control_pb2.RemoveNetworkRequest(network_id=blue.id)
    code, text = await code_of(swarm.control.RemoveNetwork(remove))
    assert (code, f"network {blue.id} is in use by service {web.id}" in text) == (
        "FAILED_PRECONDITION",
        True,
    )
    await swarm.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=web.id))
    await swarm.control.RemoveNetwork(remove)


async def test_an_exhausted_network_is_said_at_once(swarm: Any, code_of: Code) -> None:
    request = control_pb2.CreateNetworkRequest()
    request.spec.annotations.name = "tiny"
    request.spec.ipam.configs.add(subnet="10.99.0.0/30")
    await swarm.control.CreateNetwork(request)
    await create(swarm, spec("a", "tiny"))
    code, text = await code_of(create(swarm, spec("b", "tiny")))
    assert (code, "no address is left in 10.99.0.0/30" in text) == ("RESOURCE_EXHAUSTED", True)
