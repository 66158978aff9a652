"""The dispatcher: what each node must know and do, streamed to it; what it did, taken back.

Cores, without I/O and with the time passed in:

- ``sessions``: which nodes have a session, heartbeat deadlines, who is down;
- ``feed``: what one node was told, in which order the rest may follow.

Shell:

- ``hub``: one watch of the store for all nodes, wakes the streams it concerns; marks lapsed nodes;
- ``service``: the gRPC service.

The leader runs it so::

    hub = Hub(backend, rng)
    dispatcher = Dispatcher(hub)          # servicer of docker.swarmkit.v1.Dispatcher
    group.create_task(hub.run())          # cancel on loss of leadership: every stream ends

A change of the store costs the nodes it concerns, not all nodes: a task wakes its node, a node
itself, the cluster object (keys, root) everybody. Streams hold no queues. A slow node skips states.
"""
