"""Services on a lab, made and placed by hand: what a scheduler does, step by step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any as Packed

from support.cluster import PROGRAM, Cluster
from swarm.api.docker.swarmkit import control_pb2, specs_pb2, types_pb2
from swarm.api.overswarm.v1 import scheduler_pb2, scheduler_pb2_grpc
from swarm.lab.processes import wait_until

OVER = ("COMPLETE", "SHUTDOWN", "FAILED", "REJECTED", "ORPHANED")


@contextlib.contextmanager
def scheduler(cluster: Cluster, host: str = "m1") -> Iterator[scheduler_pb2_grpc.SchedulerStub]:
    """Open the Scheduler service of a manager, as root on its host."""
    path = cluster.lab.state.run_dir(host) / "manager" / "control.sock"
    with grpc.insecure_channel(f"unix:{path}") as channel:
        yield scheduler_pb2_grpc.SchedulerStub(channel)


@dataclass
class Service:
    """One service and its tasks."""

    cluster: Cluster
    name: str
    id: str
    network: str
    tasks: dict[str, str] = field(default_factory=dict)
    """Node (host name) of each task by id."""
    slots: int = 0

    def place(self, *hosts: str) -> list[str]:
        """Make a task on each host; their ids."""
        placements = []
        for host in hosts:
            self.slots += 1
            placements.append(
                scheduler_pb2.Placement(
                    node_id=node_id(self.cluster, host), service_id=self.id, slot=self.slots
                )
            )
        with scheduler(self.cluster) as stub:
            answer = stub.CreateTasks(
                scheduler_pb2.CreateTasksRequest(placements=placements, atomic=True), timeout=10
            )
        assert answer.committed, answer
        made = [result.placed.task_id for result in answer.results]
        self.tasks.update(zip(made, hosts, strict=True))
        return made

    def want(self, state: int, *task_ids: str) -> None:
        """Raise what is wanted of tasks."""
        with scheduler(self.cluster) as stub:
            stub.SetDesiredState(
                scheduler_pb2.SetDesiredStateRequest(task_ids=task_ids, desired_state=state),
                timeout=10,
            )

    def status(self, task_id: str) -> tuple[str, str]:
        """State and error of a task."""
        with self.cluster.lab.client("m1") as client:
            task = client.control.GetTask(control_pb2.GetTaskRequest(task_id=task_id)).task
        name = types_pb2.TaskState.Name(task.status.state).removeprefix("TASK_STATE_")
        return name, task.status.err

    def reach(self, state: str, *task_ids: str, seconds: float = 30) -> None:
        """Wait until tasks are in a state; another final one is an error."""
        for task_id in task_ids:
            seen: list[tuple[str, str]] = [("", "")]

            def there(task_id: str = task_id, seen: list[tuple[str, str]] = seen) -> bool:
                seen[0] = self.status(task_id)
                assert seen[0][0] == state or seen[0][0] not in OVER, seen[0]
                return seen[0][0] == state

            wait_until(there, seconds=seconds, what=lambda seen=seen: f"task is {seen[0]}")

    def remove(self) -> None:
        """Release every task and remove the service; wait until no host runs any of it."""
        with scheduler(self.cluster) as stub:
            stub.Release(scheduler_pb2.ReleaseRequest(task_ids=list(self.tasks)), timeout=10)
        with self.cluster.lab.client("m1") as client:
            client.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=self.id))
        for host in set(self.tasks.values()):
            wait_until(
                lambda host=host: self.name not in self.cluster.swarm(host, "ps", "-a"),
                seconds=30,
                what=lambda host=host: f"tasks of {self.name} stay on {host}",
            )


def node_id(cluster: Cluster, host: str) -> str:
    """Return the id of a host's node."""
    return cluster.swarm("m1", "node", "inspect", "-f", "{{.ID}}", host).strip()


def process(argv: Sequence[str]) -> specs_pb2.TaskSpec:
    """Return the spec of a task that runs a command."""
    wrapper = Packed()
    wrapper.Pack(scheduler_pb2.Process(argv=argv))
    spec = specs_pb2.TaskSpec()
    spec.generic.kind = "process"
    spec.generic.payload.CopyFrom(wrapper)
    return spec


def make(
    cluster: Cluster,
    name: str,
    network: str,
    *,
    argv: Sequence[str] = (*PROGRAM, "serve", "8080"),
    aliases: Sequence[str] = (),
    dnsrr: bool = False,
    task: specs_pb2.TaskSpec | None = None,
    ports: Sequence[types_pb2.PortConfig] = (),
    labels: Mapping[str, str] | None = None,
) -> Service:
    """Create a service without tasks."""
    spec = specs_pb2.ServiceSpec()
    spec.annotations.name = name
    spec.annotations.labels.update(labels or {})
    spec.replicated.replicas = 1
    spec.task.CopyFrom(task or process(argv))
    if network:
        spec.task.networks.add(target=network, aliases=aliases)
    spec.endpoint.mode = (
        types_pb2.ENDPOINT_RESOLUTION_MODE_DNSRR
        if dnsrr
        else types_pb2.ENDPOINT_RESOLUTION_MODE_VIP
    )
    spec.endpoint.ports.extend(ports)
    with cluster.lab.client("m1") as client:
        service = client.control.CreateService(control_pb2.CreateServiceRequest(spec=spec)).service
    return Service(cluster, name, service.id, network)
