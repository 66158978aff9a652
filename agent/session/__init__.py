"""The node's session with a manager: what the cluster wants of this node, and what it answers.

- ``messages``: inputs, outputs and settings of the core, as frozen dataclasses.
- ``wire``: what a manager sends, parsed and bounded.
- ``managers``: the known managers and the weighted choice among them.
- ``assignments``: the tasks given to this node, whole lists and increments applied without a gap.
- ``core``: the session itself, without input, output, clock or randomness of its own.
- ``service``: the shell: gRPC over the TLS tunnels of ``swarm.identity``.

The core is driven like this (the shell does no more than that)::

    core = SessionCore(config, managers, rng)
    core.start(now)
    while True:
        for output in core.take_outputs():
            ...                                   # open, hang up, send, tell the coordinator
        # then wait for a stream's message, a call's end, or core.deadline()
        core.on_session(epoch, message, now)      # or on_assignments, on_lost, tick ...

A session survives every failure by starting over: any error of any of its calls ends all of them, and
after a random pause the next manager is tried. Source: SwarmKit ``agent/session.go``, ``api/dispatcher.proto``.
"""
