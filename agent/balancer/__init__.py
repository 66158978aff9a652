"""Virtual addresses of services, in the router namespaces, with nftables alone.

Every node balances for its own containers: the router of a network translates a virtual address to a
backend's, and as every reply passes the same router, nothing else is translated and the backend sees
the client's own address. Every protocol and port, ICMP echo included.

::

    balancer = Balancer(dataplane)
    async with asyncio.TaskGroup() as group:
        group.create_task(balancer.run())
        balancer.put(network_id, endpoint_id, Backend(...))     # as gossip and our own tasks tell
        balancer.open(network_id)                               # its router exists
        balancer.remove(network_id, endpoint_id)

A service of N backends has N elements in one map for the whole network, and one in a map of verdicts
that leads it to the chain for N; that chain picks a slot below N. A change of one service is therefore
a change of a few elements, however many services there are, in one transaction; a flow that exists is
never touched by it, for connection tracking remembers its backend.

A backend that drains keeps its flows and gets no new ones. One that is gone loses what connection
tracking remembers of it at once, so that no UDP flow stays pinned to it. An address without backends
refuses at once.

Published ports are the same with ports of the host in the place of virtual addresses: of one host
(:class:`~agent.balancer.hostports.HostPorts`), or of every node (:class:`~agent.balancer.mesh.Mesh`,
which also steers replies back to the node a client came in at).

Layers: ``table`` (which backends there are), ``ruleset`` and ``published`` (text of rules and elements,
in routers and on the host), ``planner`` (what to change), ``audit`` (whether the tables still are what we put there), all pure; ``steering`` (rules of the ingress
router as text, its links by netlink); ``conntrack`` (netlink); ``balancer``, ``mesh``, ``hostports``
(asyncio).

More: ``docs/services.md``.
"""

from agent.balancer.balancer import Balancer
from agent.balancer.table import Backend

__all__ = ["Backend", "Balancer"]
