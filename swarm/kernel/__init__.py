"""The few kernel interfaces that neither the standard library nor pyroute2 offers.

- :mod:`swarm.kernel.libc`: ``unshare``, ``setns``, ``mount`` and friends, by ctypes.
- :mod:`swarm.kernel.netns`: work inside a network namespace from a worker thread.
- :mod:`swarm.kernel.nft`: nftables transactions through libnftables, in JSON, without a fork.
- :mod:`swarm.kernel.descriptors`: numbers of descriptors: low ones are kept for select(2), which libnftables uses.

Everything here is synchronous and belongs in worker threads (or in the single-threaded shim), never
on the event loop: a thread that is inside another namespace must not be asked to do anything else.
Nothing here imports more than the standard library's small modules, because the workload shim
starts once per workload and pays for each import.
"""
