"""Overswarm's front door: what the manager, the agent and the command line share.

- ``swarm.identity``: ids, join tokens, certificates, and the TLS tunnels of port 2377.
- ``swarm.model``: the cluster's objects (nodes, networks, tasks, ...) as frozen dataclasses.
- ``swarm.api``: stubs built from ``proto/``, and the one codec between them and the model.
- ``swarm.cli``: the ``swarm`` command.
- ``swarm.lab``: a whole cluster on one machine, a network namespace per host.

``manager`` and ``agent`` import this package and never each other; it imports neither.
"""
