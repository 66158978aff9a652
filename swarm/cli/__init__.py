"""The ``swarm`` command: docker's words, columns, flags and exit codes on the daemon's local API.

- :mod:`swarm.cli.main`: the command tree, loaded a branch at a time, and the one place where errors
  become a line on standard error and an exit status.
- :mod:`swarm.cli.output`: tables, JSON and Go-style templates (:mod:`swarm.cli.template`).
  ``expression`` is what stands between their braces.
- one module per group: ``cluster`` (init, join, leave, ...), ``lock`` (unlock, update), ``node``, ``network`` (and
  ``prune``), ``container`` (run, exec, ps, ...), ``namespace`` (attach, detach), ``service`` (with ``servicespec``,
  ``serviceview`` and ``mesh``), ``scheduler``, ``clientcert``, ``gossip``, ``lab``, ``daemon``.
- what they share: ``lookup`` (names to objects), ``several`` (many names, one command), ``listing`` (filters and
  format of lists), ``parse``, ``ports``, ``tasks``, ``stream`` (a terminal to a container), ``aliases``,
  ``shell`` and ``complete`` (completion).

Exit status: 0 success, 1 refused or failed, 125 unknown flag or (for ``run`` and ``exec``) the daemon
failed, 126 and 127 the command cannot be started, otherwise the command's own.
"""
