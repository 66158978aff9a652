"""What gossip says of other nodes' endpoints, brought to the data plane and the table of names.

Own entries come back from gossip, too, and mean nothing. An entry that goes because its owner is not heard
any more (and not because the owner said so) is kept for a while: an agent that is being restarted, or a
host that is cut off from the control plane, carries traffic all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping
from typing import Final

import structlog

from agent.discovery.names import NameTable
from agent.gossip.changes import ChangeKind, TableChange
from agent.gossip.config import LAN
from agent.gossip.records import PEER_TABLE
from agent.gossip.swim.wire import State
from agent.node.overlay import Overlay
from agent.node.seams import DataplanePort, GossipPort
from swarm.errors import SwarmError

LINGER_NAME: Final = 5.0
LINGER_PEER: Final = LAN.tombstone_age
LINGER_INGRESS: Final = 60.0
"""Seconds that names, peers, and peers on the ingress network outlive the moment gossip holds their node for
dead; a record for the same address by somebody else takes precedence at once.

Gossip itself keeps such entries hidden for as long as the second and shows them again when the node returns:
until then perhaps only its agent is dead. On the ingress network clients may have come in at that node, and
find another way in only when others forget it.
"""

BATCH: Final = 8
"""More changed peers than this are given to the data plane as one whole list."""

log = structlog.get_logger(component="mirror")


class Mirror:
    """Follows the tables of the networks in use here.

    Args:
        overlays: those networks by id; the owner adds and removes.
        dataplane: is told of peers.
        names: is told of names.
    """

    def __init__(
        self, overlays: Mapping[str, Overlay], *, dataplane: DataplanePort, names: NameTable
    ) -> None:
        self._overlays = overlays
        self._dataplane = dataplane
        self._names = names
        self._dirty = asyncio.Event()
        self._lingering: dict[tuple[str, str, str], float] = {}
        self._linger_more = asyncio.Event()
        self.gossip: GossipPort | None = None
        """The gossip node of the moment; None while there is none."""

    async def run(self) -> None:
        """Apply changes until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._apply_peers())
            group.create_task(self._let_go())

    def touch(self) -> None:
        """Have pending changes applied soon."""
        self._dirty.set()

    def changed(self, change: TableChange) -> None:
        """Hear of a change in a table; own entries mean nothing."""
        overlay = self._overlays.get(change.network)
        if overlay is None or (self.gossip is not None and change.owner == self.gossip.node_name):
            return
        place = (change.network, change.table, change.key)
        if change.kind is ChangeKind.DELETE and self._is_silent(change.owner):
            # Its agent is being restarted, or its host is cut off: packets may pass all the same.
            if change.table == PEER_TABLE:
                overlay.note(overlay.peers.fade(change.key))
            else:
                overlay.fade(change.key)
            now = asyncio.get_running_loop().time()
            self._lingering[place] = now + _pause(change.table, overlay)
            self._linger_more.set()
            return
        self._lingering.pop(place, None)
        if change.kind is ChangeKind.DELETE:
            overlay.memory.delete(change.table, change.key)
            overlay.owners.pop(change.key, None)
            overlay.take(change.table, change.key, None, self._names)
        else:
            overlay.owners[change.key] = change.owner
            overlay.memory.put(change.table, change.key, change.value, change.owner)
            overlay.take(change.table, change.key, change.value, self._names)
        if overlay.pending:
            self._dirty.set()

    def confirm(self, network_id: str | None = None, owners: Container[str] | None = None) -> None:
        """Drop remembered entries that gossip did not repeat: they are gone.

        Args:
            network_id: only of this network; None: of all.
            owners: only entries these gossip nodes wrote; None: whoever wrote them.
        """
        for overlay in self._overlays.values():
            if network_id not in {None, overlay.network.id}:
                continue
            for table, key in tuple(overlay.memory.unconfirmed):
                if owners is not None and overlay.memory.owners.get((table, key)) not in owners:
                    continue
                log.info("entry.unconfirmed", network=overlay.network.id, table=table, key=key)
                overlay.memory.delete(table, key)
                overlay.owners.pop(key, None)
                overlay.take(table, key, None, self._names)
            if overlay.pending:
                self._dirty.set()

    async def flush(self, overlay: Overlay) -> None:
        """Apply an overlay's pending peers; its lock is held."""
        if not overlay.prepared or overlay.closed or not overlay.pending:
            return
        pending, overlay.pending = overlay.pending, {}
        if len(pending) > BATCH:
            await self._dataplane.set_peers(overlay.network.id, overlay.peers.peers())
            return
        for ip, peer in pending.items():
            if peer is not None:
                await self._dataplane.set_peer(peer)
            else:
                await self._dataplane.remove_peer(overlay.network.id, ip)

    def _is_silent(self, owner: str) -> bool:
        """Whether entries go because their owner is not heard, and not because it said so."""
        if self.gossip is None:
            return False
        for member in self.gossip.members():
            if member.name == owner:
                return member.state is State.DEAD
        return False

    async def _let_go(self) -> None:
        """Drop entries of nodes that stayed silent."""
        loop = asyncio.get_running_loop()
        while True:
            self._linger_more.clear()
            due = min(self._lingering.values(), default=None)
            try:
                async with asyncio.timeout_at(due):
                    await self._linger_more.wait()
            except TimeoutError:
                pass
            for place in [each for each, when in self._lingering.items() if when <= loop.time()]:
                del self._lingering[place]
                network_id, table, key = place
                overlay = self._overlays.get(network_id)
                if overlay is not None:
                    overlay.memory.delete(table, key)
                    overlay.take(table, key, None, self._names)
                    if overlay.pending:
                        self._dirty.set()

    async def _apply_peers(self) -> None:
        """Tell the data plane of changed peers, as fast as it takes them."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            for overlay in tuple(self._overlays.values()):
                if not overlay.pending:
                    continue
                async with overlay.lock:
                    try:
                        await self.flush(overlay)
                    except SwarmError as error:
                        log.warning("peers.failed", network=overlay.network.id, reason=str(error))


def _pause(table: str, overlay: Overlay) -> float:
    if table != PEER_TABLE:
        return LINGER_NAME
    return LINGER_INGRESS if overlay.network.spec.ingress else LINGER_PEER
