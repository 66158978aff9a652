"""Commands in namespaces of their own: what ``swarm run``, ``exec``, ``ps``, ``logs`` and ``rm`` stand on.

A workload is a command with its own network, mount, UTS, IPC and PID namespaces, its own
``/etc/resolv.conf``, ``/etc/hosts`` and ``/etc/hostname``, a ``/proc`` and a ``/sys`` of its own, and
otherwise the host's files. It separates networks; it is not a security boundary.

Each workload is held by a small process, the shim (:mod:`agent.workload.shim`), which outlives the
agent: it makes the namespaces, starts the command, keeps the log, serves those who attach, and writes
down how the command ended. The agent talks to it over a Unix socket in the workload's directory, and
finds everything again there after a restart.

Imported by the shim, and therefore light: :mod:`~agent.workload.frames`, :mod:`~agent.workload.loop`,
:mod:`~agent.workload.process`, :mod:`~agent.workload.sandbox`, :mod:`~agent.workload.logfile`.
Imported by the agent: :mod:`~agent.workload.spec`, :mod:`~agent.workload.session`,
:mod:`~agent.workload.naming`, :mod:`~agent.workload.folder` (its directory, with
:mod:`~agent.workload.files`), :mod:`~agent.workload.shims`, and the entry class
:class:`agent.workload.runtime.Runtime`::

    runtime = Runtime(Path("/run/swarm"), on_exit=detach_networks)
    await runtime.recover()
    async with asyncio.TaskGroup() as group:
        group.create_task(runtime.run())
        workload = await runtime.create(spec)          # namespaces exist, nothing runs
        await attach_networks(workload.netns_path)
        session = await runtime.attach(spec.id)        # before the start, so that no output is missed
        await runtime.start(spec.id)
        async for stream, data in session: ...

Life: CREATED, RUNNING, EXITED; DEAD when the shim itself was killed (the kernel then kills everything
in the workload). When a command ends, ``on_exit`` is called while the namespaces still exist; after it
returns they are released, and the workload is removed if its spec says so.

Exit codes are Docker's: 125 the daemon's fault, 126 cannot be executed, 127 not found, 128 + n ended
by signal n.
"""
