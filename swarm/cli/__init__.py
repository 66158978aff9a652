"""The ``swarm`` command: docker's words, columns, flags and exit codes on the daemon's local API.

- :mod:`swarm.cli.main`: the command tree, loaded a branch at a time, and the one place where errors
  become a line on standard error and an exit status.
- :mod:`swarm.cli.output`: tables, JSON and Go-style templates (:mod:`swarm.cli.template`).
- one module per group: ``cluster`` (init, join, leave, ...), ``node``, ``network``, ``container``
  (run, exec, ps, ...), ``namespace`` (attach, detach), ``gossip``, ``lab``, ``daemon``.

Exit status: 0 success, 1 refused or failed, 125 unknown flag or (for ``run`` and ``exec``) the daemon
failed, 126 and 127 the command cannot be started, otherwise the command's own.
"""
