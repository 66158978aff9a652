"""The unix socket of the local API."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
from pathlib import Path
from typing import Any, Final

import grpc.aio
import structlog

from agent.api.containers import ContainerCalls
from agent.api.control import ControlProxy
from agent.api.networks import NetworkCalls
from agent.api.nodes import NodeCalls
from agent.api.workloads import Workloads
from agent.node.node import Node
from swarm.api.overswarm.v1 import local_pb2_grpc
from swarm.errors import HostError
from swarm.identity.sockets import unix_path

MAX_MESSAGE: Final = 64 << 20
STOP_GRACE: Final = 0.5
DEFAULT_GROUP: Final = "swarm"

log = structlog.get_logger(component="api")


class LocalService(NodeCalls, ContainerCalls, NetworkCalls):
    """Every RPC of ``overswarm.v1.Local``."""

    def __init__(self, node: Node, workloads: Workloads) -> None:
        NodeCalls.__init__(self, node, workloads)
        ContainerCalls.__init__(self, workloads)
        NetworkCalls.__init__(self, workloads)


class ApiServer:
    """Serves the local API.

    Args:
        path: of the socket; mode 0660.
        group: that may use it beside root, if this host has such a group.
        node: answers about the node.
        workloads: answers about containers.
        run_dir: where the manager process has its socket.
    """

    def __init__(
        self,
        path: Path,
        *,
        node: Node,
        workloads: Workloads,
        run_dir: Path,
        group: str = DEFAULT_GROUP,
    ) -> None:
        self._path = path
        self._group = group
        self._service = LocalService(node, workloads)
        self._proxy = ControlProxy(run_dir, node.require_manager)
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            HostError: the socket cannot be made.
        """
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
            ]
        )
        service: Any = self._service
        local_pb2_grpc.add_LocalServicer_to_server(service, server)
        server.add_generic_rpc_handlers((self._proxy,))
        self._bind(server)
        await server.start()
        self.ready.set()
        log.info("api.serving", socket=str(self._path))
        try:
            # Not wait_for_termination(): cancelled there, the server could not be stopped any more.
            await asyncio.get_running_loop().create_future()
        finally:
            await server.stop(STOP_GRACE)
            await self._proxy.close()
            self._path.unlink(missing_ok=True)

    def _bind(self, server: grpc.aio.Server) -> None:
        unix_path(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"cannot prepare {self._path}: {error.strerror}") from error
        before = os.umask(0o117)  # there must be no moment at which everybody may connect
        try:
            server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise HostError(f"cannot listen on {self._path}") from error
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError, PermissionError):
            os.chown(self._path, -1, grp.getgrnam(self._group).gr_gid)
