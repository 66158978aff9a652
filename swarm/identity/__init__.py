"""Who is who in a swarm: ids, join tokens, certificates, and the TLS tunnels of port 2377.

Pure parts (no I/O, no clock, entropy passed in where it is more than a key):

- ``ids``: node, cluster, network and task ids.
- ``token``: join tokens, and the digest that ties a token to a root certificate.
- ``certs``: the root CA, node certificates, who a certificate names, chain checks, renewal time.
- ``unlock``: the text form of the key that unlocks a manager.

Shells:

- ``keystore``: a node's certificate files, replaced so that a crash leaves the old or the new set.
- ``tls``: the two TLS contexts, and handshake failures put into words.
- ``splice``: one connection's bytes carried to another, both ways, with back-pressure; ``secure`` is
  the TLS end of it.
- ``sockets``: listeners, private unix sockets, addresses as text.
- ``front``: the server side of port 2377; ``dialer``: the client side.

A manager serves like this (the front and the gRPC server live in one process)::

    front = TlsFront(upstream=run_dir / "front" / "manager.sock", credentials=credentials)
    front.bind()                                  # HostError when the port is taken
    server.add_insecure_port(front.upstream_target)
    async with asyncio.TaskGroup() as group:
        group.create_task(front.run())            # cancel to stop
        ...
    # in an RPC: who = front.peer(context.peer()); who.identity is None without a certificate

and an agent calls like this::

    dialer = TlsDialer(directory=run_dir / "dial", credentials=credentials)
    group.create_task(dialer.run())
    channel = dialer.channel("192.0.2.1:2377", server_name=MANAGER_NAME)
    ...                                           # on failure: dialer.last_error("192.0.2.1:2377")

Both take new certificates with ``reload``: new connections use them, running ones stay.
"""
