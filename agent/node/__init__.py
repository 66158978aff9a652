"""The node: its place in a cluster, its certificate, and the networks its workloads are on.

- ``address``: which addresses to listen on and to tell others (pure); ``host``: what this host has.
- ``state``: the files of a node: settings, known managers, attachments.
- ``describe``: what a node tells managers about itself.
- ``join``: from a token to a certificate; ``renewal``: the next certificate, in time.
- ``spec``: assigned networks as the data plane wants them (pure).
- ``peers``: remote endpoints out of gossip records, checked (pure).
- ``records``: what this node tells others of its own endpoints (pure).
- ``memory``: the records of others over a restart; ``mirror``: gossip applied to data plane and names.
- ``jobs``: operations that run to their end; ``releases``: attachments a manager still has to hear of.
- ``request``: a wish to be attached (pure); ``leases``: attachments as managers hold them.
- ``endpoints``: networks and endpoints made and unmade; ``announcer``: everybody told of them.
- ``ingress``: this node's part in the ingress network; ``restore``: the take-over after a restart.
- ``overlay``: one network: endpoints here, peers elsewhere; ``seams``: what is needed of other packages.
- ``coordinator``: all of these brought together.
- ``member``: everything that runs while a manager accepts this node; ``local``: this node's own manager process.
- ``membership``: both of them, started and stopped; ``options``: what a person asks for.
- ``node``: init, join, leave, and what is known of all this at any time.

A :class:`~agent.node.node.Node` is run for the life of the daemon::

    node = Node(settings, ...)
    async with asyncio.TaskGroup() as group:
        group.create_task(node.run())
        await node.init(InitOptions(advertise_addr="eth0"))
        endpoint = await node.coordinator().attach(request)

What a failure does. A broken invariant ends the daemon (the kernel state stays, the next start
reconciles). Gossip that cannot open its port, a manager process that dies, a manager out of reach: each
is tried again with growing pauses while the rest goes on, and shows in ``Info.error``. A failing attach
undoes itself. Nothing here ever takes traffic down because the control plane is away.
"""
