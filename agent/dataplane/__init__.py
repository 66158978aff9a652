"""The agent's data plane: overlay networks in the Linux kernel.

Wanted state goes in, the kernel ends up in it. What is wanted is turned into kernel objects
(:mod:`~agent.dataplane.planner`), compared with those a netlink dump shows, and the difference is
a plan: frozen operations that one executor (:mod:`~agent.dataplane.kernel`) carries out. A plan
applied twice changes nothing. A daemon that starts anew reconciles; running containers notice
nothing. No process is forked.

::

    plane = Dataplane(Settings(vtep=..., run_dir=...))
    async with asyncio.TaskGroup() as group:
        group.create_task(plane.run())
        await plane.ready()
        await plane.reconcile(Wanted(networks=..., endpoints=..., peers=...))
        await plane.plug(endpoint)          # packets pass when this returns
        await plane.set_peer(peer)          # as gossip tells
        await plane.unplug(endpoint.id)

One network is one L3 router in a namespace of its own, kept by a bind mount under
``run_dir/netns/`` and held by descriptor: an unbridged VXLAN device per VNI, a veth and a /32 or
/128 per local endpoint, a permanent neighbour, forwarding entry and host route per remote one,
unreachable routes for the rest. No layer-2 domain spans the containers of a node, so there is no
port limit and no broadcast to lose; packets between containers have their TTL lowered by one per
node they pass. Two networks share nothing.

Packets between two known addresses pass a router that translates nothing without its IP stack
(:mod:`~agent.dataplane.shortcut`), by its routes and neighbours all the same.

A container that asks for a default route gets a second leg into the daemon's namespace, with
masquerade (:mod:`~agent.dataplane.exits`), unless its network is internal.

An encrypted network travels in ESP or not at all (:mod:`~agent.dataplane.shield`): its policies
and guards are in the daemon's namespace before its first device, and hold without this process.

Layers, from pure to impure: ``model`` (wanted state), ``names``, ``mtu``, ``objects``,
``ruleset``, ``shortcut``, ``exits``, ``crypto``, ``guards``, ``planner``, ``netlink`` and ``xfrm`` (bytes),
``observed``; ``channel``, ``bpf``, ``programs``, ``nft``, ``namespace``, ``sysctl``, ``underlay``, ``monitor``;
``inside``, ``ipsec`` and ``kernel`` (observe, apply); ``executor``, ``ways``, ``shield`` and ``engine`` (memory and decisions, synchronous, in the one worker thread); ``dataplane`` (asyncio).

More: ``docs/dataplane.md``.
"""

from agent.dataplane.dataplane import Dataplane
from agent.dataplane.executor import Check
from agent.dataplane.model import (
    Encryption,
    Endpoint,
    Failure,
    Finding,
    IpsecKey,
    NetnsRef,
    Network,
    Peer,
    Report,
    Settings,
    Stats,
    Subnet,
    VxlanCounters,
    Wanted,
)
from agent.dataplane.mtu import overlay_mtu

__all__ = [
    "Check",
    "Dataplane",
    "Encryption",
    "Endpoint",
    "Failure",
    "Finding",
    "IpsecKey",
    "NetnsRef",
    "Network",
    "Peer",
    "Report",
    "Settings",
    "Stats",
    "Subnet",
    "VxlanCounters",
    "Wanted",
    "overlay_mtu",
]
