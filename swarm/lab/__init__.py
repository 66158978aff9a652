"""The lab: a whole cluster on one machine, every host a network namespace with real daemons.

Hosts ``m1..`` and ``w1..`` are namespaces named ``<lab>-<host>`` (``lab-m1``), each with its own
``eth0`` (192.0.2.0/24 and 2001:db8::/64) on a bridge inside one more namespace, ``<lab>-underlay``,
so that nothing of the machine's own network is touched. Every host runs a real ``swarm daemon`` as a
process of its own, with its own state below ``/var/lib/swarm-lab`` and run-time below
``/run/swarm-lab``.

- :class:`swarm.lab.cluster.Lab` is the entry: ``up``, ``down``, ``spawn``, ``kill``, ``partition`` ...
- :mod:`swarm.lab.hosts` makes and removes namespaces and links,
- :mod:`swarm.lab.processes` starts, finds and ends what runs on a host,
- :mod:`swarm.lab.faults` breaks the underlay with nftables,
- :mod:`swarm.lab.engine` runs a stock Docker engine on a bare host, :mod:`swarm.lab.workloads` are the small programs
  in containers, :mod:`swarm.lab.enter` is how a command gets into a host,
- :mod:`swarm.lab.capture` counts what is on a host's wire, :mod:`swarm.lab.traces` what is left on the machine,
- :mod:`swarm.lab.demo` is the main job from start to end, ``demo_encrypted`` and ``demo_docker`` the same encrypted,
  and with engines.

Several labs can exist side by side under different names (``--name`` or ``SWARM_LAB``); the same
addresses never meet because each lab has an underlay of its own.
"""
