"""The local API: what the command line, the plugins and the lab talk to, on a unix socket of this host.

- ``server``: the socket, its permissions; ``calls``: errors as gRPC statuses.
- ``nodes``: Info, Init, Join, Leave.
- ``containers``: create, start, attach, exec, stop, remove, wait, list, logs.
- ``networks``: connect and disconnect, foreign namespaces, what is on which network.
- ``workloads``: what the latter two do, without gRPC; ``namespaces``: one namespace under several paths.
- ``control``: ``docker.swarmkit.v1.Control`` handed to the manager process byte for byte.
- ``convert``: our objects as messages.

A refused call carries one sentence for a person and the status of its cause (``swarm.errors``); a command
that cannot be executed also carries ``exit-code`` in its trailing metadata (126 or 127, as shells say it).
"""
