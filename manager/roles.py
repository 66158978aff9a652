"""What the leader does so that roles come true: learners get their vote, demoted managers lose it.

A promotion is stored at once; the node fetches a manager's certificate, starts a manager, and that
one joins by itself. A demotion first takes the member out of the group, then changes the stored role,
by which the node's next certificate is a worker's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from manager.api.backend import Backend
from manager.raft.errors import NotLeaderError
from manager.raft.node import RaftNode
from manager.store import Transaction, Watch
from swarm.errors import InvariantError, StaleError, SwarmError
from swarm.model import Node, NodeRole

PROMOTION: Final = 2.0
"""Seconds spent on one learner before the next has its turn."""

RETRY: Final = 0.5

log = structlog.get_logger(__name__)


async def promote_learners(raft: RaftNode) -> None:
    """Give every learner its vote as soon as it has caught up, until cancelled."""
    changed = asyncio.Event()
    end = raft.on_status(lambda _: changed.set())
    try:
        while True:
            changed.clear()
            learners = [each for each in raft.status.members.values() if each.learner]
            for learner in learners:
                await _promote(raft, learner.raft_id)
            if learners:
                await asyncio.sleep(RETRY)
            else:
                await changed.wait()
    finally:
        end()


async def _promote(raft: RaftNode, raft_id: int) -> None:
    try:
        async with asyncio.timeout(PROMOTION):
            await raft.promote(raft_id)
    except TimeoutError:
        log.debug("manager.promotion.waiting", raft_id=f"{raft_id:x}")
    except (InvariantError, NotLeaderError):
        raise
    except SwarmError as error:
        log.warning("manager.promotion.failed", raft_id=f"{raft_id:x}", detail=str(error))


async def follow_roles(backend: Backend, raft: RaftNode) -> None:
    """Make every node's role the one it shall have, until cancelled."""
    watch = backend.store.watch()
    todo = {node.id for node in backend.store.view.nodes.all() if _unsettled(node)}
    while True:
        for node_id in tuple(todo):
            if await _tried(partial(_follow, backend, raft, node_id), node_id):
                todo.discard(node_id)
        try:
            async with asyncio.timeout(RETRY if todo else None):
                todo.update(await _arrivals(watch))
        except TimeoutError:
            continue
        except StaleError:
            watch = backend.store.watch()
            todo.update(node.id for node in backend.store.view.nodes.all() if _unsettled(node))


async def _arrivals(watch: Watch) -> Iterable[str]:
    commit = await anext(watch)
    new = [change.new for change in commit.changes]
    return [node.id for node in new if isinstance(node, Node) and _unsettled(node)]


async def _tried(step: Callable[[], Awaitable[None]], node_id: str) -> bool:
    try:
        await step()
    except (InvariantError, NotLeaderError):
        raise
    except SwarmError as error:
        log.warning("role.change.waiting", node=node_id, detail=str(error))
        return False
    return True


async def _follow(backend: Backend, raft: RaftNode, node_id: str) -> None:
    node = backend.store.view.nodes.get(node_id)
    if node is None or not _unsettled(node):
        return
    wanted = node.spec.desired_role
    if wanted is NodeRole.WORKER:
        status = raft.status
        for member in status.members.values():
            if member.node_id != node_id:
                continue
            if member.raft_id == status.id:
                # Who leads next removes this member.
                await raft.transfer_leadership()
                return
            await raft.remove(member.raft_id)

    def build(tx: Transaction) -> None:
        current = tx.nodes.get(node_id)
        if current is not None and current.spec.desired_role is wanted:
            tx.update(replace(current, role=wanted))

    await backend.store.transact(build)
    log.info("role.changed", node=node_id, role=wanted.name.lower())


def _unsettled(node: Node) -> bool:
    return node.role is not node.spec.desired_role


async def demote_absent(backend: Backend) -> None:
    """Make workers of all managers that are not in the group (any more), after disaster recovery."""

    def build(tx: Transaction) -> None:
        present = backend.managers()
        for node in tx.nodes.all():
            if node.role is NodeRole.MANAGER and node.id not in present:
                spec = replace(node.spec, desired_role=NodeRole.WORKER)
                tx.update(replace(node, role=NodeRole.WORKER, spec=spec))

    await backend.store.transact(build)
