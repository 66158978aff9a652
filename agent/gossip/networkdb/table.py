"""Entries of all tables: live ones, tombstones, and those hidden while their owner is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from agent.gossip.networkdb.wire import Action, TableEvent, encode


class Key(NamedTuple):
    """Place of an entry within one network."""

    table: str
    key: str


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """The newest state known of one key.

    Attributes:
        time: Lamport time of the owner's event; unchanged for as long as the entry is.
        deleted: a tombstone; ``value`` is then the last one.
        hidden: alive, but its owner failed: kept, synced, and shown to nobody.
        reap_at: when a tombstone or hidden entry is forgotten; None for a visible one.
    """

    owner: str
    time: int
    value: bytes
    deleted: bool = False
    hidden: bool = False
    reap_at: float | None = None
    encoded: bytes | None = None  # what a bulk sync carries, as long as the entry is visible

    @property
    def visible(self) -> bool:
        """Whether readers see it."""
        return not self.deleted and not self.hidden

    def unhide(self) -> None:
        """Bring a hidden entry back."""
        self.hidden, self.reap_at = False, None


class Store:
    """Entries by network, table and key."""

    __slots__ = ("_known", "_networks", "size")

    def __init__(self) -> None:
        self._known: dict[bytes, Entry] = {}
        self._networks: dict[str, dict[Key, Entry]] = {}
        self.size = 0

    def get(self, network: str, key: Key) -> Entry | None:
        """Return one entry, tombstone or hidden entry."""
        return self._networks.get(network, {}).get(key)

    def set(self, network: str, key: Key, entry: Entry) -> None:
        """Store an entry in place of whatever is there."""
        entries = self._networks.setdefault(network, {})
        before = entries.get(key)
        if before is None:
            self.size += 1
        else:
            self._unknow(before)
        entries[key] = entry
        if entry.encoded is not None:
            self._known[entry.encoded] = entry

    def remove(self, network: str, key: Key) -> None:
        """Forget one entry without a tombstone."""
        entries = self._networks.get(network)
        if entries is not None and (entry := entries.pop(key, None)) is not None:
            self._unknow(entry)
            self.size -= 1
            if not entries:
                del self._networks[network]

    def hide(self, entry: Entry, until: float) -> None:
        """Take an entry out of sight."""
        self._unknow(entry)
        entry.hidden, entry.reap_at, entry.encoded = True, until, None

    def knows(self, event: bytes, *, besides: str) -> bool:
        """Tell whether an encoded event is what is visible already, and not of one owner's.

        Most events heard are: gossip brings each a dozen times, bulk syncs bring all of them.
        """
        entry = self._known.get(event)
        return entry is not None and entry.owner != besides

    def to_wire(
        self,
        network: str,
        key: Key,
        entry: Entry,
        now: float,
        draining: Callable[[str, bytes], bool],
    ) -> bytes:
        """Return the event a bulk sync carries; that of a visible entry is made only once."""
        if entry.encoded is not None:
            return entry.encoded
        action = Action.DELETE
        if not entry.deleted:
            action = Action.UPDATE if draining(key.table, entry.value) else Action.CREATE
        encoded = encode(
            TableEvent(
                action=action,
                time=entry.time,
                owner=entry.owner,
                network=network,
                table=key.table,
                key=key.key,
                value=entry.value,
                residual=0 if entry.reap_at is None else max(1, int(entry.reap_at - now)),
            )
        )
        if entry.visible:
            entry.encoded = encoded
            self._known[encoded] = entry
        return encoded

    def network(self, network: str) -> dict[Key, Entry]:
        """Return the entries of one network; not to be changed by the caller."""
        return self._networks.get(network, {})

    def items(self) -> Iterator[tuple[str, Key, Entry]]:
        """Walk over a copy of everything, so that the caller may change the store meanwhile."""
        for network, entries in list(self._networks.items()):
            for key, entry in list(entries.items()):
                yield network, key, entry

    def _unknow(self, entry: Entry) -> None:
        if entry.encoded is not None:
            self._known.pop(entry.encoded, None)
