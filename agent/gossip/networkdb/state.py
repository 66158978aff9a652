"""What one node holds: clocks, networks, peers, entries, and the changes readers have to hear."""

from __future__ import annotations

from agent.gossip.changes import ChangeKind, TableChange
from agent.gossip.networkdb.clock import LamportClock
from agent.gossip.networkdb.own import OwnNetwork
from agent.gossip.networkdb.peers import Peer, Peers
from agent.gossip.networkdb.table import Entry, Key, Store


class LocalState:
    """Shared by the parts of one NetworkDB; every change of an entry goes through it."""

    def __init__(self, *, name: str, host: str, port: int) -> None:
        self.name = name
        self.address = (host, port)
        self.network_clock = LamportClock()
        self.table_clock = LamportClock()
        self.own: dict[str, OwnNetwork] = {}
        self.peers = Peers()
        self.store = Store()
        self._changes: list[TableChange] = []

    def set(self, network: str, place: Key, entry: Entry) -> None:
        """Store an entry in place of whatever is there."""
        before = self.store.get(network, place)
        self.store.set(network, place, entry)
        self._report(network, place, before, entry)

    def drop(self, network: str, place: Key, entry: Entry) -> None:
        """Forget an entry without a tombstone."""
        self.store.remove(network, place)
        self._report(network, place, entry, None)

    def _report(self, network: str, place: Key, before: Entry | None, after: Entry | None) -> None:
        """Tell readers, judging by what they saw and see."""
        seen = before if before is not None and before.visible else None
        sees = after if after is not None and after.visible else None
        if sees is not None:
            if seen is None:
                kind = ChangeKind.CREATE
            elif seen.value == sees.value and seen.owner == sees.owner:
                return
            else:
                kind = ChangeKind.UPDATE
            self.tell(kind, network, place, sees, None if seen is None else seen.value)
        elif seen is not None:
            self.tell(ChangeKind.DELETE, network, place, seen, seen.value)

    def tell(
        self, kind: ChangeKind, network: str, place: Key, entry: Entry, previous: bytes | None
    ) -> None:
        """Note a change for readers."""
        self._changes.append(
            TableChange(
                kind=kind,
                table=place.table,
                network=network,
                key=place.key,
                owner=entry.owner,
                value=entry.value,
                previous=previous,
            )
        )

    def take_changes(self) -> list[TableChange]:
        """Return what became different for readers, in order, and forget it."""
        changes, self._changes = self._changes, []
        return changes

    def entries_of(self, owner: str) -> list[tuple[str, Key, Entry]]:
        """Return every entry of one owner, tombstones and hidden ones included."""
        return [found for found in self.store.items() if found[2].owner == owner]

    def takes_part(self, network: str) -> bool:
        """Tell whether this node is on a network."""
        own = self.own.get(network)
        return own is not None and not own.leaving

    def shared(self, peer: Peer) -> list[str]:
        """Return the networks this node and another are on."""
        return [
            name for name in self.own if self.takes_part(name) and self.peers.attached(peer, name)
        ]
