"""Simulated managers: many seeds of every fault at once, in virtual time.

``clock``, ``loop``: virtual time, and an asyncio event loop that lives in it. ``disk``: what a
crash leaves. ``world``, ``trouble``: network, processes, faults. ``eye``: what must hold of the raft
cores after each step. ``register``: the world of cores alone. ``cluster``: the world of whole
managers, with ``clients`` that use them, the ``ledger`` of what was truly committed, and
``histories``, the checker of what clients were told. ``soak``: any number of seeds from the shell.
"""
