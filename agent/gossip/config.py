"""Settings of the gossip component."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast gossip works; all times in seconds. Peers need not agree on any of it.

    Attributes:
        probe_interval: one other member is probed per interval; detection time scales with it.
        probe_timeout: wait for a direct ack before asking others; at least the network's 99th
            percentile round trip.
        indirect_checks: members asked to probe on our behalf.
        suspicion_mult: minimum suspicion = mult * max(1, log10 n) * probe_interval.
        suspicion_max_mult: maximum suspicion = this times the minimum.
        awareness_limit: the health score stays below it; 1 switches Lifeguard's stretching off.
        gossip_interval: pause between two rounds of membership gossip.
        gossip_nodes: members each round goes to.
        gossip_to_dead: how long dead members still get gossip, and stay in the list.
        retransmit_mult: a broadcast is sent mult * ceil(log10(n + 1)) times.
        push_pull_interval: pause between two full exchanges; stretched above 32 members.
        stream_timeout: for one stream, from dialling to the end of the reply.
        packet_size: most bytes of one datagram's payload.
        table_interval: pause between two rounds of table gossip.
        flush_interval: least pause between two times that own changes are sent directly.
        flush_nodes: peers that get an own change directly.
        bulk_sync_interval: pause between two periodic bulk syncs of a network.
        bulk_sync_timeout: wait for the reply to a bulk sync; nothing else waits for it.
        early_age: how long entries of members not yet seen to be attached are kept.
        reap_interval: pause between two looks for what is too old.
        tombstone_age: how long deleted (and hidden) entries are remembered; 1800 in every engine.
        network_age: how long a left network is remembered; above ``tombstone_age``.
        reconnect_interval: pause between two attempts to reach failed members.
        node_age: failed and left members are forgotten after it.
        rejoin_interval: pause between two looks for seeds that are no members.
        rejoin_jitter: each such attempt is delayed by up to this.
        reannounce_delay: returns of peers within it cause one announcement.
        republish_backoff: first pause between two republications of a network's own entries;
            doubles while they keep getting lost, up to ``republish_limit``.
        republish_limit: see above.
    """

    probe_interval: float = 1.0
    probe_timeout: float = 0.5
    indirect_checks: int = 3
    suspicion_mult: int = 4
    suspicion_max_mult: int = 6
    awareness_limit: int = 8
    gossip_interval: float = 0.2
    gossip_nodes: int = 3
    gossip_to_dead: float = 30.0
    retransmit_mult: int = 4
    push_pull_interval: float = 30.0
    stream_timeout: float = 10.0
    packet_size: int = 1400
    table_interval: float = 0.2
    flush_interval: float = 0.01
    flush_nodes: int = 8
    bulk_sync_interval: float = 30.0
    bulk_sync_timeout: float = 5.0
    early_age: float = 10.0
    reap_interval: float = 5.0
    tombstone_age: float = 1800.0
    network_age: float = 1825.0
    reconnect_interval: float = 1.0
    node_age: float = 86400.0
    rejoin_interval: float = 60.0
    rejoin_jitter: float = 2.0
    reannounce_delay: float = 1.0
    republish_backoff: float = 15.0
    republish_limit: float = 600.0


LAN: Final = Timing()
"""What stock engines use; right for a cluster."""

LOCAL: Final = Timing(
    probe_interval=0.5,
    probe_timeout=0.2,
    suspicion_mult=3,
    gossip_interval=0.1,
    table_interval=0.1,
    push_pull_interval=10.0,
    stream_timeout=3.0,
    bulk_sync_interval=10.0,
    rejoin_interval=5.0,
    rejoin_jitter=0.2,
)
"""Faster, for hosts that share one machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    """Settings of one node's gossip.

    Attributes:
        advertise_host: the IPv4 or IPv6 address at which others reach this node.
        advertise_port: the port they use; stock engines look for managers on 7946 only.
        bind_host: where to listen.
        bind_port: where to listen, datagrams and streams alike.
        node_name: None makes a random name of 12 hexadecimal digits per start, which is right
            unless ``incarnation`` is kept too.
        incarnation: the first one; above every one used before under the same name.
        label: clear text put before everything sent and demanded of everything received; up to
            255 bytes. Empty in Swarm.
        timing: see :class:`Timing`.
    """

    advertise_host: str
    advertise_port: int = 7946
    bind_host: str = "0.0.0.0"
    bind_port: int = 7946
    node_name: str | None = None
    incarnation: int = 1
    label: bytes = b""
    timing: Timing = field(default=LAN)
