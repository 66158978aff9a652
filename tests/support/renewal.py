"""Certificates at the end of their life, and what a client offers in its TLS hello."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manager.cluster import signing_ca
from manager.raft.messages import EntryKind
from manager.raft.storage import SqliteStorage
from manager.store import Store
from swarm.identity.certs import Role
from swarm.lab.cluster import Lab
from swarm.lab.hosts import inside, port_name
from swarm.model import Cluster, Node

ALPN_H2 = bytes.fromhex("0010 0005 0003 02") + b"h2"
"""The extension that offers HTTP/2, in a TLS hello (RFC 7301)."""
_EVERYTHING = 0x0003
"""ETH_P_ALL: what is for one protocol only is taken by the bridge before a listener sees it."""
_IPV4 = bytes.fromhex("0800")
_HANDSHAKE, _CLIENT_HELLO = 0x16, 0x01


def stored(lab: Lab, manager: str, scratch: Path) -> tuple[Cluster, dict[str, Node]]:
    """The cluster and its nodes as the manager's own disk has them, signing key included."""
    copy = scratch / "raft"
    shutil.copytree(lab.state.state_dir(manager) / "raft", copy)
    storage = SqliteStorage.open(copy)
    try:
        found = storage.load()
    finally:
        storage.close()
        shutil.rmtree(copy)
    store = Store(clock_ns=lambda: 0)
    if found.snapshot.index:
        store.restore(found.snapshot.index, found.snapshot.data)
    for entry in found.entries:
        if entry.kind is EntryKind.COMMAND and entry.index > found.snapshot.index:
            store.apply(entry.index, entry.data)
    return store.view.clusters.only(), {node.id: node for node in store.view.nodes.all()}


def nearly_expired(cluster: Cluster, node: Node) -> bytes:
    """A certificate for the node's own key, by the cluster's own root, that ends in five minutes."""
    return signing_ca(cluster).issue(
        node.certificate.csr,
        node_id=node.id,
        cluster_id=cluster.id,
        role=Role.WORKER,
        validity=timedelta(hours=1),
        now=datetime.now(UTC) - timedelta(minutes=55),
    )


@contextmanager
def hellos(lab: Lab, host: str, port: int = 2377) -> Iterator[list[bool]]:
    """Collect, for each TLS hello that ``host`` sends to ``port``, whether it offers HTTP/2."""
    seen: list[bool] = []
    sniffer = inside(
        lab.state.underlay_netns,
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING)),
    )
    sniffer.bind((port_name(host), _EVERYTHING))
    sniffer.settimeout(0.2)
    done = threading.Event()

    def listen() -> None:
        while not done.is_set():
            try:
                frame = sniffer.recv(65_535)
            except TimeoutError:
                continue
            packet = frame[14:]
            if frame[12:14] != _IPV4:
                continue
            segment = packet[(packet[0] & 0xF) * 4 :]
            if packet[9] != socket.IPPROTO_TCP or int.from_bytes(segment[2:4], "big") != port:
                continue
            data = segment[(segment[12] >> 4) * 4 :]
            if len(data) > 6 and data[0] == _HANDSHAKE and data[5] == _CLIENT_HELLO:
                seen.append(ALPN_H2 in data)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        sniffer.close()
