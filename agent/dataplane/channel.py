"""A route netlink socket: batches of requests, each outcome looked at; dumps."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

from agent.dataplane import netlink, xfrm
from agent.dataplane.netlink import Message
from swarm.errors import HostError

SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 4 << 20
"""Bytes; holds the acknowledgements of a chunk many times over."""

CHUNK = 256
"""Requests on their way at once: were all refused, the answers must fit the default receive buffer."""

DATAGRAM = 1 << 16
TIMEOUT = 10.0
"""Seconds the kernel may take for one chunk; it answers in the calling thread, so this is a bug trap."""

DUMP_ATTEMPTS = 5
GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO})
"""Errors of a removal that mean there is nothing to remove."""


class KernelError(HostError):
    """The kernel refused a request.

    Attributes:
        number: its errno.
        position: of the request in its batch.
    """

    def __init__(self, text: str, number: int = 0, position: int = 0) -> None:
        super().__init__(text)
        self.number = number
        self.position = position


class Channel:
    """A netlink socket in the namespace its constructor ran in, wherever it is used later.

    Args:
        protocol: a NETLINK_* family: route or XFRM.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._removals = _REMOVALS[protocol]
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.settimeout(TIMEOUT)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, messages: Sequence[Message]) -> list[tuple[int, str]]:
        """Send requests in order and return (errno, kernel's text) of each; 0 is success.

        The kernel goes on after a failed one: the caller decides what a failure means.
        """
        results: list[tuple[int, str]] = []
        for start in range(0, len(messages), CHUNK):
            chunk = messages[start : start + CHUNK]
            first = self._sequence + 1
            self._sequence += len(chunk)
            # Refusals are always answered, so only the last one asks for an answer: when that
            # comes, the kernel has been through all of them, in order.
            last = len(chunk) - 1
            self._socket.send(
                b"".join(
                    netlink.pack(message, first + i, _ASK if i == last else _TELL)
                    for i, message in enumerate(chunk)
                )
            )
            answers: dict[int, tuple[int, str]] = {}
            while self._sequence not in answers:
                for kind, flags, sequence, body in netlink.split(self._socket.recv(DATAGRAM)):
                    if kind == netlink.NLMSG_ERROR and first <= sequence <= self._sequence:
                        answers[sequence] = _error(flags, body)
            results += [answers.get(first + i, (0, "")) for i in range(len(chunk))]
        return results

    def pour(self, texts: Sequence[bytes], *, each: int) -> bool:
        """Send packed requests, numbered 0, and tell whether the kernel took all of them.

        Which one it refused, if any, is not told: :meth:`check` does that, more slowly. That something
        to remove is not there is no refusal.

        Args:
            texts: some requests each.
            each: how many requests are in one of them.
        """
        refused = False
        step = max(1, CHUNK // each)
        for start in range(0, len(texts), step):
            self._sequence += 1
            # The kernel answers a request to do nothing when it has been through those before it.
            mark = netlink.pack(Message(netlink.NLMSG_NOOP, 0, b""), self._sequence, _ASK)
            self._socket.send(b"".join(texts[start : start + step]) + mark)
            answered = False
            while not answered:
                for kind, flags, sequence, body in netlink.split(self._socket.recv(DATAGRAM)):
                    if kind != netlink.NLMSG_ERROR:
                        continue
                    if sequence == self._sequence:
                        answered = True
                    elif sequence == 0:
                        number, _ = _error(flags, body)
                        removal = netlink.refused_kind(body) in self._removals
                        refused = refused or not (removal and number in GONE)
        return not refused

    def check(self, messages: Sequence[Message]) -> None:
        """Send requests and raise the first failure.

        Raises:
            KernelError: a request was refused. Those after it were tried all the same.
        """
        for position, (number, text) in enumerate(self.run(messages)):
            if number == 0:
                continue
            if number in GONE and messages[position].kind in self._removals:
                continue
            raise KernelError(text, number, position)

    def dump(self, message: Message) -> list[bytes]:
        """Return the bodies of a dump, asked again when it was torn by a change meanwhile.

        Raises:
            KernelError: the kernel refused.
        """
        bodies: list[bytes] = []
        for _ in range(DUMP_ATTEMPTS):
            bodies, torn = self._dump(message)
            if not torn:
                break
        return bodies

    def _dump(self, message: Message) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._socket.send(netlink.pack(message, self._sequence, netlink.NLM_F_REQUEST))
        bodies: list[bytes] = []
        torn = False
        while True:
            for kind, flags, sequence, body in netlink.split(self._socket.recv(DATAGRAM)):
                if sequence != self._sequence:
                    continue
                torn = torn or bool(flags & netlink.NLM_F_DUMP_INTR)
                if kind == netlink.NLMSG_DONE:
                    return bodies, torn
                if kind == netlink.NLMSG_ERROR:
                    number, text = _error(flags, body)
                    raise KernelError(text, number)
                bodies.append(body)

    def link(self, name: str) -> netlink.Link | None:
        """Return one link by name, None when there is none."""
        body = self.ask(netlink.get_link(name))
        return None if body is None else netlink.parse_link(body)

    def ask(self, message: Message) -> bytes | None:
        """Return the body of the one object asked for, None when there is none.

        Raises:
            KernelError: the kernel refused.
        """
        self._sequence += 1
        self._socket.send(netlink.pack(message, self._sequence, netlink.NLM_F_REQUEST))
        while True:
            for kind, flags, sequence, body in netlink.split(self._socket.recv(DATAGRAM)):
                if sequence != self._sequence:
                    continue
                if kind != netlink.NLMSG_ERROR:
                    return body
                number, text = _error(flags, body)
                if number in GONE:
                    return None
                raise KernelError(text, number)

    def index(self, name: str) -> int:
        """Return a link's index.

        Raises:
            KernelError: there is no such link.
        """
        link = self.link(name)
        if link is None:
            raise KernelError(f"there is no interface {name}", errno.ENODEV)
        return link.index


_TELL = netlink.NLM_F_REQUEST
_ASK = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
_REMOVALS = {
    socket.NETLINK_ROUTE: frozenset(
        {
            netlink.RTM_DELLINK,
            netlink.RTM_DELADDR,
            netlink.RTM_DELROUTE,
            netlink.RTM_DELNEIGH,
            netlink.RTM_DELQDISC,
            netlink.RTM_DELTFILTER,
        }
    ),
    xfrm.NETLINK_XFRM: frozenset({xfrm.DELSA, xfrm.DELPOLICY}),
}
_NLMSGERR_ATTR_MSG = 1
_CAPPED, _ACK_TLVS = 0x100, 0x200


def _error(flags: int, body: bytes) -> tuple[int, str]:
    number = -struct.unpack_from("=i", body)[0]
    if number == 0:
        return 0, ""
    text = os.strerror(number)
    if flags & _ACK_TLVS:
        # errno, then the request's header (alone, as CAP_ACK is set), then the attributes.
        message = netlink.attrs(body, 20).get(_NLMSGERR_ATTR_MSG)
        if message:
            text += ": " + message.rstrip(b"\0").decode(errors="replace")
    return number, text
