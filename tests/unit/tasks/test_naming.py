"""Names of a task's workload and endpoints."""

from __future__ import annotations

import pytest

from agent.tasks import naming
from agent.tasks.listening import is_listening, waits
from swarm.model import (
    Annotations,
    Endpoint,
    Network,
    NetworkAttachment,
    NetworkSpec,
    PortConfig,
    PortProtocol,
    PublishMode,
    Task,
    VirtualIP,
)

WEB = Annotations(name="web")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Task(id="t", slot=3, service_annotations=WEB), "web.3.t"),
        (Task(id="t", node_id="n", service_annotations=WEB), "web.n.t"),
        (Task(id="t", slot=3, service_annotations=WEB, annotations=Annotations(name="x")), "x"),
        (Task(id="t", slot=1), "1.t"),
    ],
)
def test_a_task_is_called_as_engines_call_it(task: Task, name: str) -> None:
    assert naming.task_name(task) == name


def test_a_task_has_one_workload() -> None:
    assert len(naming.workload_id("t")) == 64
    assert naming.workload_id("t") == naming.workload_id("t") != naming.workload_id("u")


def test_virtual_addresses_are_those_of_the_network_and_ports_only_of_ingress() -> None:
    port = PortConfig(protocol=PortProtocol.UDP, target_port=53, published_port=30053)
    hosted = PortConfig(target_port=80, published_port=8080, publish_mode=PublishMode.HOST)
    task = Task(
        service_id="s",
        service_annotations=WEB,
        endpoint=Endpoint(
            ports=(port, hosted),
            virtual_ips=(
                VirtualIP(network_id="a", addr="10.0.1.9/24"),
                VirtualIP(network_id="b", addr="10.0.2.9/24"),
            ),
        ),
    )
    on_a = NetworkAttachment(network=Network(id="a"), aliases=("www",))
    part = naming.service_part(task, on_a)
    assert (part.virtual_ips, part.ports, part.aliases) == (("10.0.1.9",), (), ("www",))
    ingress = NetworkAttachment(network=Network(id="b", spec=NetworkSpec(ingress=True)))
    part = naming.service_part(task, ingress)
    assert (part.virtual_ips, part.ports) == (("10.0.2.9",), ("30053:53/udp",))


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("   0: 00000000:1F90 00000000:0000 0A 00000000:00000000", True),
        ("   0: 0100007F:1F90 0100007F:0050 01 00000000:00000000", False),
        ("   0: 0B00007F:9C40 00000000:0000 0A 00000000:00000000", False),
        ("", False),
        ("garbage", False),
    ],
)
def test_only_a_socket_that_waits_for_others_counts(line: str, expected: bool) -> None:
    """An established one does not, nor does the name service's."""
    assert waits(HEAD + line + "\n", "0A") is expected


def test_a_process_that_is_gone_listens_on_nothing() -> None:
    assert not is_listening(2**22 + 1)
