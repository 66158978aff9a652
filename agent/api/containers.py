"""Create, start, attach, exec, stop, remove, wait, list, logs."""
# ruff: noqa: N802  # the names of RPCs are given

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any, Final

from agent.api import convert
from agent.api.calls import Context, answering
from agent.api.networks import wish
from agent.api.workloads import ContainerOptions, Workloads
from agent.workload.session import AttachSession
from agent.workload.spec import State
from swarm.api.overswarm.v1 import local_pb2
from swarm.errors import InvalidArgumentError, SwarmError

DEFAULT_GRACE: Final = 10.0
MAX_GRACE: Final = 86_400.0
MAX_WINDOW: Final = 65_535


class ContainerCalls:
    """The containers' part of the service. RPCs are documented in ``local.proto``."""

    def __init__(self, workloads: Workloads) -> None:
        self._workloads = workloads
        self._runtime = workloads.runtime

    @answering
    async def CreateContainer(
        self, request: local_pb2.CreateContainerRequest, _: Context
    ) -> local_pb2.CreateContainerResponse:
        """Make a container; nothing runs in it yet."""
        made = await self._workloads.create(
            ContainerOptions(
                argv=tuple(request.argv),
                name=request.name,
                env=_environment(request.env),
                cwd=request.cwd,
                hostname=request.hostname,
                tty=request.tty,
                stdin_open=request.stdin_open,
                auto_remove=request.auto_remove,
                wishes=tuple(wish(each, tuple(request.dns)) for each in request.networks),
                labels=dict(request.labels),
                dns_search=tuple(request.dns_search),
                publish=tuple(request.publish),
            )
        )
        return local_pb2.CreateContainerResponse(id=made.spec.id, name=made.spec.name)

    @answering
    async def StartContainer(
        self, request: local_pb2.StartContainerRequest, _: Context
    ) -> local_pb2.StartContainerResponse:
        """Attach a container's networks and start its command."""
        endpoints = await self._workloads.start(request.container)
        names = self._workloads.network_names()
        return local_pb2.StartContainerResponse(
            endpoints=[convert.endpoint(each, names) for each in endpoints]
        )

    @answering
    async def AttachContainer(
        self, requests: AsyncIterator[local_pb2.StreamRequest], context: Context
    ) -> None:
        """Carry a container's streams."""
        opening = await _opening(requests)
        session = await self._runtime.attach(opening.container)
        await _carry(session, opening, requests, context)

    @answering
    async def ExecContainer(
        self, requests: AsyncIterator[local_pb2.StreamRequest], context: Context
    ) -> None:
        """Run a further command in a container, and carry its streams."""
        opening = await _opening(requests)
        session = await self._runtime.exec(
            opening.container,
            tuple(opening.argv),
            tty=opening.tty,
            stdin=opening.stdin_open,
            env=_environment(opening.env),
            cwd=opening.cwd,
            size=(opening.rows, opening.columns),
        )
        await _carry(session, opening, requests, context)

    @answering
    async def StopContainer(
        self, request: local_pb2.StopContainerRequest, _: Context
    ) -> local_pb2.StopContainerResponse:
        """End a container's command."""
        grace = min(max(request.grace, 0.0), MAX_GRACE)
        number = request.signal or int(signal.SIGTERM)
        code = await self._runtime.stop(request.container, signal=number, grace=grace)
        return local_pb2.StopContainerResponse(exit_code=code)

    @answering
    async def RemoveContainer(
        self, request: local_pb2.RemoveContainerRequest, _: Context
    ) -> local_pb2.RemoveContainerResponse:
        """Remove a container, its networks first."""
        workload = self._runtime.get(request.container)
        if workload.state is State.CREATED:
            await self._workloads.node.container_gone(workload.spec.id)
        await self._runtime.remove(workload.spec.id, force=request.force)
        return local_pb2.RemoveContainerResponse(id=workload.spec.id)

    @answering
    async def WaitContainer(
        self, request: local_pb2.WaitContainerRequest, _: Context
    ) -> local_pb2.WaitContainerResponse:
        """Wait for the end of a container's command."""
        code = await self._runtime.wait(request.container)
        return local_pb2.WaitContainerResponse(exit_code=code)

    @answering
    async def ListContainers(
        self, request: local_pb2.ListContainersRequest, _: Context
    ) -> local_pb2.ListContainersResponse:
        """List containers."""
        found = (
            [self._runtime.get(request.container)]
            if request.container
            else [
                each for each in self._runtime.list() if request.all or each.state is State.RUNNING
            ]
        )
        names = self._workloads.network_names()
        by_container: dict[str, list[local_pb2.LocalEndpoint]] = {}
        published: dict[str, list[str]] = {}
        for each in self._workloads.endpoints():
            published.setdefault(each.container_id, []).extend(each.published)
            by_container.setdefault(each.container_id, []).append(convert.endpoint(each, names))
        return local_pb2.ListContainersResponse(
            containers=[
                convert.container(
                    each, by_container.get(each.spec.id, ()), published.get(each.spec.id, ())
                )
                for each in found
            ]
        )

    @answering
    async def LogsContainer(
        self, request: local_pb2.LogsContainerRequest, context: Context
    ) -> None:
        """Send what a container has written."""
        async for entry in self._runtime.logs(request.container, follow=request.follow):
            await context.write(
                local_pb2.LogsContainerResponse(stderr=entry.data)
                if entry.stream == "stderr"
                else local_pb2.LogsContainerResponse(stdout=entry.data)
            )


def _environment(lines: Any) -> dict[str, str]:
    """Read ``NAME=value`` lines."""
    found: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not name or not equals:
            raise InvalidArgumentError(f"invalid environment variable {line!r:.80}")
        found[name] = value
    return found


async def _opening(requests: AsyncIterator[local_pb2.StreamRequest]) -> local_pb2.StreamOpen:
    async for first in requests:
        if first.WhichOneof("kind") == "open":
            return first.open
        break
    raise InvalidArgumentError("the first message of a stream says what it is about")


async def _carry(
    session: AttachSession,
    opening: local_pb2.StreamOpen,
    requests: AsyncIterator[local_pb2.StreamRequest],
    context: Context,
) -> None:
    """Carry both directions until the command ends or the caller goes away."""
    async with session, asyncio.TaskGroup() as group:
        if opening.tty and opening.rows and opening.columns:
            await session.resize(*_window(opening.rows, opening.columns))
        await context.write(local_pb2.StreamResponse(attached=True))
        incoming = group.create_task(_feed(session, requests))
        async for stream, data in session:
            await context.write(
                local_pb2.StreamResponse(stderr=data)
                if stream == "stderr"
                else local_pb2.StreamResponse(stdout=data)
            )
        incoming.cancel()
        await context.write(local_pb2.StreamResponse(exit_code=session.exit_code or 0))


async def _feed(session: AttachSession, requests: AsyncIterator[local_pb2.StreamRequest]) -> None:
    """Hand a caller's input on; the end of the command ends this quietly."""
    try:
        async for request in requests:
            match request.WhichOneof("kind"):
                case "stdin":
                    await session.write_stdin(request.stdin)
                case "close_stdin":
                    await session.close_stdin()
                case "resize":
                    await session.resize(*_window(request.resize.rows, request.resize.columns))
                case "signal":
                    await session.signal(request.signal)
                case _:
                    pass
    except SwarmError:
        return  # the output side says how the command ended


def _window(rows: int, columns: int) -> tuple[int, int]:
    return min(max(rows, 1), MAX_WINDOW), min(max(columns, 1), MAX_WINDOW)
