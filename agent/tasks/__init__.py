"""Tasks of services, run on this node: what a manager assigns becomes a command in namespaces.

A task of the generic runtime ``process`` is a workload (:mod:`agent.workload`) on the networks that
came with the task; its addresses were allocated by the manager, nothing is asked for. A task with a
container image is refused with a reason: this agent has no image runtime.

::

    runner = TaskRunner(session=session, coordinator=coordinator, runtime=runtime, node_id=...)
    async with asyncio.TaskGroup() as group:
        group.create_task(runner.run())
        runner.assigned(task)       # as the session tells
        runner.removed(task_id)
        runner.complete()

States reported, in order: ACCEPTED, PREPARING (namespaces, networks), READY, STARTING, RUNNING, then
COMPLETE (exit code 0), FAILED, or SHUTDOWN (we ended it, as wanted). What fails before STARTING is
REJECTED, with the reason. A backend is announced to others once its command listens on something
(:mod:`~agent.tasks.listening`), not before; it is announced as draining before it is stopped.

Which task a workload belongs to is in the workload's labels, and its id is a function of the task's:
a restarted agent finds every task where the last one left it.

Layers: ``naming`` and ``process`` (what is asked for; pure), ``listening`` (reads /proc), ``runner``.

More: ``docs/services.md``.
"""

from agent.tasks.runner import TaskRunner, Timing

__all__ = ["TaskRunner", "Timing"]
