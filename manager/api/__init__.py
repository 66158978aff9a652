"""What the manager answers on its port and its local socket.

The edge, which every RPC passes:

- ``access``: who may call what, read from the contracts; one decision per call, without I/O;
- ``gates``: that decision for the TLS port and for this host's private socket;
- ``server``: services registered from their descriptors, errors turned into gRPC statuses.

Servicers (``async def Method(self, request, caller, context)``), on a :class:`~manager.api.backend.Backend`:

- ``nodes``, ``networks``, ``clusters``, ``tasks``, ``services``: the Control service, in parts;
- ``attachments``: the ResourceAllocator service; ``balancers``: the nodes' own addresses;
- ``health``: Health and RaftMembership.

Serving::

    backend = Backend(store=store, barrier=raft.read_barrier, managers=managers)
    services = [Service(descriptor=CONTROL, servicers=(Nodes(backend), Networks(backend), ...)), ...]
    server = make_server(services, Edge(gate=TlsGate(store, front.peer, leading), broken=end_process))
    server.add_insecure_port(front.upstream_target)

An RPC that declares no access, or that no servicer offers, keeps the server from being made.
"""
