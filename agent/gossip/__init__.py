"""Gossip on port 7946: who is alive, and what the cluster's endpoint tables hold.

Two protocols in one, both as stock Docker engines speak them: SWIM with Lifeguard
(:mod:`agent.gossip.swim`) keeps the membership, NetworkDB (:mod:`agent.gossip.networkdb`)
spreads network attachments and table entries over it. Both are cores without input, output,
clock or randomness of their own; :class:`agent.gossip.node.Node` joins them into one, and
:class:`agent.gossip.service.Gossip` gives that one sockets and time::

    gossip = Gossip(GossipConfig(advertise_host="192.0.2.10"), keys=keys, rng=rng, on_change=print)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(gossip.run())
        await gossip.ready()
        gossip.set_seeds([("192.0.2.1", 7946)])
        gossip.join_network(network_id)
        gossip.put("endpoint_table", network_id, endpoint_id, record.encode())
        ...
        await gossip.leave(timeout=5.0)
        running.cancel()

What the values of the two tables mean is :mod:`agent.gossip.records`. Layers: ``config``, ``outputs``
(what the cores ask for), ``changes`` (what readers see), ``timers``, ``refusal`` (what was turned away, and
why), ``streams`` and ``status``, all pure; ``node`` (both cores as one); ``service`` (sockets and time).

Page: ``docs/gossip.md``.
"""
