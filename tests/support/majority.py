"""A lab of three managers, a worker and two spare hosts, and what its tests wait for."""

from __future__ import annotations

from support.cluster import Cluster
from support.writer import Ledger
from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.errors import SwarmError
from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

MANAGERS = ("m1", "m2", "m3")
SPARE = ("m4", "m5")


def as_formed(lab: Lab) -> Cluster:
    """The cluster as :func:`form` makes it; made anew where a test left another one."""
    try:
        await_managers(lab, "m1", 3)
        if set(statuses(lab, "m1")) == set(MANAGERS):
            return Cluster(lab)
    except SwarmError:
        pass
    lab.down()
    form(lab)
    return Cluster(lab)


def form(lab: Lab) -> None:
    """Make the hosts, and a cluster of three managers and a worker."""
    lab.build([*MANAGERS, *SPARE, "w1"])
    lab.form([*MANAGERS, "w1"])
    await_managers(lab, "m1", 3)


def statuses(lab: Lab, host: str) -> dict[str, types_pb2.ManagerStatus]:
    """The managers by host name, as one of them sees them."""
    with lab.client(host) as opened:
        nodes = opened.control.ListNodes(control_pb2.ListNodesRequest(), timeout=10).nodes
    return {n.description.hostname: n.manager_status for n in nodes if n.HasField("manager_status")}


def await_managers(lab: Lab, host: str, count: int) -> None:
    """Wait until so many managers are reachable, one of them leading."""
    seen: list[str] = []

    def settled() -> bool:
        try:
            found = statuses(lab, host)
        except SwarmError as error:
            seen.append(str(error))
            return False
        seen.append(str(found))
        good = sum(
            each.reachability == types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE
            for each in found.values()
        )
        return len(found) == good == count and any(each.leader for each in found.values())

    wait_until(settled, seconds=40, what=lambda: f"no {count} managers: {seen[-1]}")


def leader_of(lab: Lab, host: str) -> str:
    """The host that leads."""
    return next(name for name, status in statuses(lab, host).items() if status.leader)


def await_writes(ledger: Ledger, count: int) -> None:
    """Wait for so many more acknowledgements."""
    seen = len(ledger.times)
    wait_until(
        lambda: len(ledger.times) >= seen + count,
        seconds=40,
        what=lambda: f"{len(ledger.times) - seen} of {count} writes: {ledger.failures[-3:]}",
    )


def others(host: str) -> tuple[str, ...]:
    """The managing hosts but one."""
    return tuple(each for each in MANAGERS if each != host)


def await_managers_anywhere(managers: Cluster, count: int) -> None:
    """Wait as :func:`await_managers`, asking whichever host manages."""

    def ready() -> bool:
        for host in (*MANAGERS, *SPARE):
            try:
                found = statuses(managers.lab, host)
            except SwarmError:
                continue
            good = sum(
                each.reachability == types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE
                for each in found.values()
            )
            return len(found) == good == count and any(each.leader for each in found.values())
        return False

    wait_until(ready, seconds=40, what=lambda: f"there are no {count} managers")


def node_id(managers: Cluster, host: str) -> str:
    """Its id; a host that left and joined again has the name of two nodes."""
    return managers.swarm(host, "info", "--format", "{{.NodeID}}").strip()
