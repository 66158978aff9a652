"""Telling everybody of the endpoints here: names on this node, service balancing, gossip.

Load balancer addresses (``Node.attachments``) are not published: nothing answers at them, since service
traffic keeps the client's own address here, and a record for an address where nobody answers only makes
other engines program entries for it. The one on the ingress network is (:mod:`agent.node.ingress`).
"""

from __future__ import annotations

from collections.abc import Container

from agent.balancer.steering import link_container
from agent.dataplane.model import IPAddress
from agent.dataplane.names import ROUTER_LINK_LOCAL
from agent.discovery.names import NameTable
from agent.gossip.records import ENDPOINT_TABLE, PEER_TABLE
from agent.node import records
from agent.node.mirror import Mirror
from agent.node.overlay import Overlay, ips_of
from agent.node.seams import BalancerPort, GossipPort
from agent.node.state import Attachment
from swarm.kernel.netns import in_netns


class Announcer:
    """Tells of endpoints, and takes it back.

    Args:
        vtep: this node's tunnel address, part of what others are told.
        mirror: knows the gossip node of the moment.
        names: of this node.
        balancer: of this node.
    """

    def __init__(
        self, *, vtep: IPAddress, mirror: Mirror, names: NameTable, balancer: BalancerPort
    ) -> None:
        self._vtep = str(vtep)
        self._mirror = mirror
        self._names = names
        self._balancer = balancer

    def locate(self, attachment: Attachment) -> None:
        """Tell other nodes where an endpoint is about to be, so that they know the way once it is there.

        What it is called is not told before it can be reached: see :meth:`announce`.
        """
        if self._mirror.gossip is not None:
            self._put(self._mirror.gossip, attachment, (PEER_TABLE,))

    def announce(self, overlay: Overlay, attachment: Attachment) -> None:
        """Tell of an endpoint, or of a change in what is told of it."""
        names = records.names_of(attachment)
        if names is not None:
            self._names.put(attachment.network_id, attachment.endpoint_id, names, local=True)
        self.balance(overlay, attachment)
        if self._mirror.gossip is not None:
            self.publish(self._mirror.gossip, attachment)

    def withdraw(self, overlay: Overlay, attachment: Attachment) -> None:
        """Take back whatever was told, others first: nobody sends to an endpoint about to go."""
        if self._mirror.gossip is not None:
            for entry in reversed(records.entries(attachment, self._vtep)):
                self._mirror.gossip.delete(entry.table, attachment.network_id, entry.key)
        self._names.remove(attachment.network_id, attachment.endpoint_id, local=True)
        for key, ip in records.keys(attachment):
            overlay.unbalance(key)
            if attachment.service is not None:
                self._balancer.set_local(attachment.network_id, ip, None)

    def balance(self, overlay: Overlay, attachment: Attachment) -> None:
        """Make a service's endpoint a backend of its service on this node."""
        for key, ip in records.keys(attachment):
            record = records.endpoint_record(attachment, ip)
            subnet = overlay.spec.subnet_of(ip)
            if record is None or attachment.service is None or subnet is None:
                continue
            overlay.balance(key, record, local=True)
            if record.virtual_ip:
                self._balancer.set_local(attachment.network_id, ip, subnet.gateway)

    def publish(self, gossip: GossipPort, attachment: Attachment) -> None:
        """Write an endpoint's records into the gossip tables."""
        self._put(gossip, attachment, (PEER_TABLE, ENDPOINT_TABLE))

    def _put(self, gossip: GossipPort, attachment: Attachment, tables: Container[str]) -> None:
        gossip.join_network(attachment.network_id)
        for entry in records.entries(attachment, self._vtep):
            if entry.table in tables:
                gossip.put(entry.table, attachment.network_id, entry.key, entry.value)


def steer(overlay: Overlay, attachment: Attachment) -> None:
    """Have a container answer clients of published ports the way they came; in a worker thread.

    Raises:
        SwarmError: the kernel cannot.
    """
    for ip in ips_of(attachment):
        subnet = overlay.spec.subnet_of(ip)
        if subnet is not None:
            gateway = subnet.gateway if ip.version == 4 else ROUTER_LINK_LOCAL.ip
            with in_netns(attachment.netns):
                link_container(attachment.interface, ip, gateway)
