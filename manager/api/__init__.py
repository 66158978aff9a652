"""What the manager answers on its port and its local socket.

The edge, which every RPC passes:

- ``access``: who may call what, read from the contracts; one decision per call, without I/O;
- ``gates``: that decision for the TLS port and for this host's private socket;
- ``forward``: calls that only the leader answers, passed on to it in the caller's name; ``leader``: who that is;
- ``server``: services registered from their descriptors, errors turned into gRPC statuses (``errors``: those
  that engines know without a status).

Servicers (``async def Method(self, request, caller, context)``), on a :class:`~manager.api.backend.Backend`:

- ``nodes``, ``networks``, ``clusters``, ``tasks``, ``services``: the Control service, in parts;
  ``servicespecs`` and ``removal``: what a service may ask for, and whether a manager may go;
- ``scheduler``: the Scheduler service; ``placements``: its tasks; ``watches``: its stream; ``scheduling``: all of it
  on one manager;
- ``attachments``: the ResourceAllocator service; ``balancers``: the nodes' own addresses;
- ``membership``: RaftMembership; ``raft``: other managers' messages; ``keys``: rotation on demand;
- ``health``: Docker's Health; ``standard``: gRPC's own health and reflection.

``checks``, ``filters`` and ``wire`` are what they share.

Serving::

    backend = Backend(store=store, barrier=raft.read_barrier, managers=managers)
    services = [Service(descriptor=CONTROL, servicers=(Nodes(backend), Networks(backend), ...)), ...]
    server = make_server(services, Edge(gate=TlsGate(store, front.peer, leading), broken=end_process))
    server.add_insecure_port(front.upstream_target)

An RPC that declares no access, or that no servicer offers, keeps the server from being made.
"""
