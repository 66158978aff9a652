"""The library schedulers are written with.

A scheduler decides which task runs on which node; the managers give the task its addresses, names
and ports, hand it to the node, and say why when something cannot be. Typed, asynchronous::

    async with connect(managers, load_credentials(directory), directory=sockets) as cluster:
        web = await cluster.create_service(spec)
        answer = await cluster.create_tasks(
            [Placement(node_id=node, service_id=web.id, slot=1)], request_id="web-1"
        )
        for refusal in answer.refused:
            print(refusal.reason, refusal.message, refusal.help)
        mirror = Mirror()
        async for update in cluster.watch():  # over every change of leader, without a gap
            mirror.apply(update)

:mod:`~swarm.scheduler.model` are the objects, :mod:`~swarm.scheduler.wire` their messages;
:mod:`~swarm.scheduler.constraints` and :mod:`~swarm.scheduler.spread` say where tasks may and should go.

Calls are made again until they are answered; a request id makes that harmless. On a manager's host
:func:`connect_local` needs no certificate. ``deploy/examples/spread.py`` is a whole scheduler;
:class:`Keeper` is the one behind ``swarm scheduler run``. See ``docs/scheduler.md``.
"""

from swarm.scheduler.client import (
    SchedulerClient,
    connect,
    connect_local,
    load_credentials,
    load_managers,
)
from swarm.scheduler.keeper import Keeper
from swarm.scheduler.mirror import Mirror
from swarm.scheduler.model import (
    Allocation,
    Change,
    Event,
    EventKind,
    Kind,
    Placed,
    Placement,
    Placing,
    Reason,
    Refusal,
    Result,
    Update,
)

__all__ = [
    "Allocation",
    "Change",
    "Event",
    "EventKind",
    "Keeper",
    "Kind",
    "Mirror",
    "Placed",
    "Placement",
    "Placing",
    "Reason",
    "Refusal",
    "Result",
    "SchedulerClient",
    "Update",
    "connect",
    "connect_local",
    "load_credentials",
    "load_managers",
]
