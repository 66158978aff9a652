"""Who takes our guards away is heard at once: kernel notifications about nftables and IPsec.

A firewall that is reloaded flushes everybody's tables. What happens in between is the business of
the other layer (see :mod:`agent.dataplane.shield`); this only makes it short.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from agent.dataplane import netlink, xfrm
from agent.dataplane.channel import DATAGRAM
from agent.dataplane.names import IPSEC_TABLE
from swarm.errors import WireError

NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
_XFRM_GROUPS = (3, 4)  # linux/xfrm.h: XFRMNLGRP_SA, XFRMNLGRP_POLICY
_NFNL_SUBSYS_NFTABLES = 10
_NFGENMSG = 4  # bytes of struct nfgenmsg
_REMOVALS = frozenset({2, 5, 8, 11, 14})  # NFT_MSG_DEL{TABLE,CHAIN,RULE,SET,SETELEM}
_NFTA_TABLE = 1  # NFTA_{TABLE_NAME,CHAIN_TABLE,RULE_TABLE,SET_TABLE,SET_ELEM_LIST_TABLE}
_TABLE = IPSEC_TABLE.encode() + b"\0"
_XFRM_REMOVALS = frozenset({xfrm.DELSA, xfrm.DELPOLICY, xfrm.FLUSHSA, xfrm.FLUSHPOLICY})


def concerns_us(protocol: int, data: bytes) -> bool:
    """Tell whether one datagram of notifications says that something of ours may be gone.

    Our own removals look the same; the comparison that follows then finds nothing to do.
    """
    try:
        for kind, _, _, body in netlink.split(data):
            if protocol == xfrm.NETLINK_XFRM:
                if kind in _XFRM_REMOVALS:
                    return True
            elif (
                kind >> 8 == _NFNL_SUBSYS_NFTABLES
                and kind & 0xFF in _REMOVALS
                and netlink.attrs(body, _NFGENMSG).get(_NFTA_TABLE) == _TABLE
            ):
                return True
    except WireError:
        return True  # cannot be read: look
    return False


class Monitor:
    """Notification sockets of the namespace its constructor ran in."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        for protocol, groups in (
            (NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,)),
            (xfrm.NETLINK_XFRM, _XFRM_GROUPS),
        ):
            with contextlib.suppress(OSError):  # without it in the kernel nobody can take it away
                self._open(protocol, sum(1 << (group - 1) for group in groups))

    def _open(self, protocol: int, groups: int) -> None:
        sock = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            protocol,
        )
        try:
            sock.bind((0, groups))
        except OSError:
            sock.close()
            raise
        self._sockets[sock.fileno()] = sock

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to wait on for reading."""
        return tuple(self._sockets)

    def heard(self, descriptor: int) -> bool:
        """Read all that has come; tell whether something of ours may be gone."""
        sock = self._sockets[descriptor]
        found = False
        while True:
            try:
                data = sock.recv(DATAGRAM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return True
                found = True  # notifications were lost: one of them may have concerned us
            else:
                found = concerns_us(sock.proto, data) or found
