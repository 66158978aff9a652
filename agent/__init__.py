"""The node process: everything a host does so that its workloads share networks with other hosts.

====================  ==========================================================================
package               role
====================  ==========================================================================
``agent.session``     the node's session with a manager: certificates, assignments, statuses
``agent.node``        join, renewal, leave; assignments, kernel, gossip and names brought together
``agent.gossip``      membership and the endpoint tables between nodes, port 7946
``agent.dataplane``   plans and executes kernel changes: VXLAN, routes, nftables, IPsec
``agent.discovery``   the resolver each workload sees at 127.0.0.11
``agent.workload``    container-like namespaces and what is attached to which network
``agent.api``         the local API on a unix socket
``agent.kernel``      the few kernel interfaces no library offers
``agent.supervisor``  the manager process of a manager node
``agent.daemon``      all of it in one process: ``python -m agent``
====================  ==========================================================================

Protocol logic and plans are pure; each package has one thin asynchronous shell whose ``run()``
owns its tasks. Imports go to ``swarm``, never to ``manager``.
"""
