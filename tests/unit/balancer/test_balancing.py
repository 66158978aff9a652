"""How flows are to be spread: labels, records, and what both make of a backend."""

from __future__ import annotations

import ipaddress

import pytest

from agent.balancer.table import OTHERS, PREFERRED, SILENT, backend_of
from agent.gossip.records import Balancing, EndpointRecord, decode_endpoint_untrusted
from agent.tasks import naming
from swarm import balancing
from swarm.errors import InvalidArgumentError
from swarm.model import Annotations, Network, NetworkAttachment, Task

VIP, IP = ipaddress.ip_address("10.0.1.200"), ipaddress.ip_address("10.0.1.11")
PLAIN = EndpointRecord(name="c", endpoint_ip=str(IP))
ODD = EndpointRecord(
    name="c", endpoint_ip=str(IP), balancing=Balancing(weight=3, sticky=True, prefer_local=True)
)


def test_labels_say_how_and_a_tasks_own_say_it_last() -> None:
    service = {balancing.AFFINITY: "client", balancing.WEIGHT: "2", balancing.PREFER: "none"}
    assert balancing.parse(service, {balancing.WEIGHT: "5"}) == balancing.Balancing(
        sticky=True, weight=5
    )
    assert balancing.parse({"other": "x"}) == balancing.Balancing()


@pytest.mark.parametrize(
    "labels",
    [
        {balancing.AFFINITY: "yes"},
        {balancing.PREFER: "remote"},
        {balancing.WEIGHT: "0"},
        {balancing.WEIGHT: "17"},
        {balancing.WEIGHT: "1.5"},
        {balancing.WEIGHT: "\uff19"},
        {balancing.GRACE: "3601"},
        {balancing.GRACE: ""},
    ],
)
def test_other_values_are_refused_by_managers_and_the_usual_to_agents(
    labels: dict[str, str],
) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(labels))):
        balancing.parse(labels)
    assert balancing.parse_lenient(labels) == balancing.Balancing()


def test_a_tasks_endpoint_carries_what_the_labels_say() -> None:
    task = Task(
        service_id="s",
        service_annotations=Annotations(
            name="web", labels={balancing.AFFINITY: "client", balancing.PREFER: "local"}
        ),
        annotations=Annotations(name="web.1", labels={balancing.WEIGHT: "4"}),
    )
    part = naming.service_part(task, NetworkAttachment(network=Network(id="n")))
    assert (part.weight, part.sticky, part.prefer_local) == (4, True, True)


def test_a_record_brings_it_to_others_and_engines_see_nothing_of_it() -> None:
    """The usual is not written at all, so that most records are as an engine's."""
    assert decode_endpoint_untrusted(ODD.encode()) == ODD
    assert decode_endpoint_untrusted(PLAIN.encode()) == PLAIN
    assert ODD.encode().startswith(PLAIN.encode()), "a field behind all of theirs"


def test_where_a_backend_is_and_whether_it_is_heard_decide_its_tier() -> None:
    for record, local, silent, tier in (
        (PLAIN, False, False, PREFERRED),
        (ODD, True, False, PREFERRED),
        (ODD, False, False, OTHERS),
        (PLAIN, False, True, SILENT),
        (ODD, False, True, SILENT),
    ):
        made = backend_of(record, VIP, IP, local=local, silent=silent)
        assert made.tier == tier
        assert (made.weight, made.sticky) == ((3, True) if record is ODD else (1, False))
