"""Service discovery: the DNS server that every container finds at 127.0.0.11.

- :mod:`agent.discovery.names`: the table of names, filled from gossip and from local endpoints; pure.
- :mod:`agent.discovery.wire`: DNS messages to and from bytes (dnspython, bounded).
- :mod:`agent.discovery.answers`: what a query is answered with, or that it is to be forwarded; pure.
- :mod:`agent.discovery.forward`: the upstream servers, hedged, with a memory of who failed.
- :mod:`agent.discovery.redirect`: the nftables table ``overswarm_dns`` of a container's namespace.
- :mod:`agent.discovery.tables`: nftables in a container's namespace, without waiting for its end.
- :mod:`agent.discovery.server`: the UDP and TCP sides of one container's server.
- :mod:`agent.discovery.service`: :class:`~agent.discovery.service.Discovery`, which ties them together.

Driving it::

    names = NameTable()
    discovery = Discovery(names, rng=random.SystemRandom())
    async with asyncio.TaskGroup() as group:
        group.create_task(discovery.run())
        names.set_network("n1", "backend")
        names.put("n1", "e1", NameRecord(name="db.1.x", addresses=(ip,), ...))
        await discovery.serve("c1", "/proc/4711/ns/net", networks=("n1",), upstreams=("192.0.2.53",))

Sockets are opened inside the container's namespace on random ports of 127.0.0.11, and nftables leads
127.0.0.11:53 there, so the container may run a DNS server of its own on port 53. After a restart of
the agent the same ports are taken again, so that resolvers with a long-lived socket go on.

Answers: a service name gives the virtual address, or all tasks in random order; ``tasks.NAME`` gives
all tasks; ``NAME.NETWORK`` asks one network only. Of several networks the first in the container's
order that knows the name answers. Unknown single-label names never leave the machine.
"""
