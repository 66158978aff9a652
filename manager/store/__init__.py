"""The cluster's objects: in memory, typed, indexed; every write is one transaction in the Raft log.

Entry class :class:`Store`. It is the state machine of ``manager.raft``; a manager drives it so::

    store = Store(clock_ns=time.time_ns)
    raft = RaftNode(machine=store, ...)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raft.run())
        tasks.create_task(store.run(raft.propose, raft.read_barrier, raft.settled))


    network = store.view.networks.find("web")  # committed, at once


    def attach(tx: Transaction) -> str:  # no awaits, no effects but on tx
        found = tx.networks.require(network.id)
        return tx.create(Task(id=new_id(), node_id=node, networks=(...,))).id


    task_id = await store.transact(attach)
    async for commit in store.watch(since=store.index):  # StaleError: read the view, watch again
        for change in commit.changes: ...

Layers, all pure but the last: ``tables``, ``index`` and ``changes``; ``pools``, ``subnets`` and ``claims``
(who holds which address, VNI and port); ``state`` (all tables) with ``transaction`` and ``watch`` over
it; ``entry`` and ``loading`` (bytes of the log); ``machine`` (what Raft drives); ``store`` (asyncio).

Writes that arrive while an entry is in flight go out together as the next one. Names, VNIs,
published ports, subnets and addresses are checked when a transaction is built and again when it is
applied, on every replica. See ``docs/store.md``.
"""

from manager.store.changes import Change, Commit
from manager.store.claims import MAX_VNI, MIN_VNI, VXLANID_LIST, holds_addresses, vnis_of
from manager.store.entry import MAX_CHANGES, MAX_TRANSACTION_BYTES, Action
from manager.store.errors import RepeatedError
from manager.store.store import Store
from manager.store.tables import Object, Table, TableId, name_of
from manager.store.transaction import Transaction, View
from manager.store.watch import Watch

__all__ = [
    "MAX_CHANGES",
    "MAX_TRANSACTION_BYTES",
    "MAX_VNI",
    "MIN_VNI",
    "VXLANID_LIST",
    "Action",
    "Change",
    "Commit",
    "Object",
    "RepeatedError",
    "Store",
    "Table",
    "TableId",
    "Transaction",
    "View",
    "Watch",
    "holds_addresses",
    "name_of",
    "vnis_of",
]
