"""The manager process: everything that runs on 2377.

``python -m manager --state-dir S --run-dir R`` reads ``S/manager.json`` (:mod:`manager.config`), founds a
swarm at its first start and goes on with what is stored at every later one. It serves the port it is
told, and the same services for this host's root on ``R/manager/control.sock``. It says ``READY=1`` to
``NOTIFY_SOCKET``; what stops it stands in ``STATUS=``, on standard error and in the exit code (3: it needs
the unlock key, given on standard input with ``--unlock``; 4: it was removed from the managers' group).

Below, what is stored:

- ``raft``: the replicated log;
- ``store``: the cluster's objects, in memory, every write one log entry;
- ``allocator``: networks, subnets, addresses, VNIs and ports.

On top, what is answered:

- ``api``: the edge (who may call what, errors as statuses), Control, ResourceAllocator, Health;
- ``ca``: certificates of managers and workers;
- ``dispatcher``: what each node must do, streamed to it.

Around them: ``process`` starts and stops all of it in order, ``opening`` gets it its raft state (by
``joining`` the others, where there are some), ``founding`` is the first transaction, ``services`` is
what it offers, ``duties``, ``roles`` and ``reaper`` are what only the leader does, ``moving`` tells of a new
address, ``lock`` follows autolock, ``keyage`` knows when the network keys are due, ``refusal`` marks a
state that must not be used any more, ``cluster`` is what the cluster object holds, ``paths``,
``causes``, ``clock`` and ``notify`` are what they say.
"""
