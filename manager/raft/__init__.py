"""The managers' replicated log: one order of commands that all of them apply.

A command is opaque bytes. It is *committed* once a majority of managers has it on disk, and every
manager then applies it to its own state machine, in the same order. Source: Ongaro's dissertation,
"Consensus: Bridging Theory and Practice" (2014); why the engine is our own: docs/decisions.

- ``node``: :class:`~manager.raft.node.RaftNode`, what the rest of the manager uses.
- ``core``, ``intake``, ``election``, ``leader``, ``handover``, ``follower``, ``asking``: what a
  member does, free of I/O, clock and randomness. ``log``, ``progress``, ``quorum``, ``reads``,
  ``outbox``, ``membership``, ``faults``: its parts.
- ``messages``, ``events``, ``config``, ``errors``, ``wire``: the vocabulary and its bounds.
- ``storage``, ``sealing``, ``database``, ``keys``: the sealed state on disk.
- ``transport``, ``codec``: gRPC between managers.
- ``waiting``, ``report``, ``status``, ``ports``: the callers, the log lines, the view and the seams of
  the node.

Using it::

    storage = SqliteStorage.create(directory, Identity(...))     # or .open(directory)
    transport = GrpcTransport(raft_id=..., addr=..., channel=dial)
    add_RaftServicer_to_server(RaftServicer(transport, identify), server)
    node = RaftNode(config=..., storage=storage, machine=machine, transport=transport, rng=rng)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(node.run())                # owns every task; cancel it to stop
        await node.ready()
        result = await node.propose(command)         # what machine.apply() returned or raised
        await node.read_barrier()                    # then the machine's state is fresh

The core's own loop, which the node runs and the tests run in virtual time::

    while (ready := core.ready()) is not IDLE:
        send(ready.messages)                         # always at once: see below
        restore(ready.restore); apply(ready.committed); answer(ready.reads)
        if ready.batch: write it in one synced transaction, then core.advance()

A message that claims something (a vote, an entry) leaves ``ready`` only after ``advance`` for the
batch that makes it durable, so a driver cannot send too early. While a batch is on its way to the
disk the core goes on: what arrives meanwhile shares the next batch.

Membership changes one member at a time: a newcomer starts as a learner (``add_learner``), gets its
vote when it has caught up (``promote``), and leaves for good (``remove``). A raft id is never used
twice: a manager that lost its disk joins under a new one.

What old copies of a disk do: a restored member that misses two of its starts or more is recognised
by its incarnation, by members that heard the later one (followers hear each other in elections
only); one that misses committed entries by the leader's heartbeat. Both end it with an error. A
copy that misses one start or none, while the group also changes its leader, is not recognised; do
not restore single managers, join them again.
"""
