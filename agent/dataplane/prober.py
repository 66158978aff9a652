"""Tries what arrives at another node: how large a packet, and whether with checksums from the device.

Every node of ours answers (:mod:`agent.dataplane.chamber`); a Docker engine does not, and of a path that
says nothing nothing is concluded.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass

from agent.dataplane.chamber import PROBE_PORT, Chamber
from agent.dataplane.model import IPAddress

NONCE = 16
"""Bytes that a probe begins with and that its answer consists of."""
SMALL = 128
"""Bytes of a packet that fits everywhere."""
LEAST = {4: 576, 6: 1280}
"""No path of that family is smaller by its standard; less is not looked for."""
STEP = 4
WAIT = 1.0
"""Seconds for the first answers of a path."""
LEAST_WAIT, ROUNDS = 0.1, 8
"""Later ones get so many times what the quickest took, but never less than the first figure, seconds."""
FEW, MANY = 3, 5
"""Attempts before a packet counts as one that does not pass; a lossy path must not look like a small one."""
_HEADERS = {4: 28, 6: 48}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a path does.

    Attributes:
        mtu: the largest IP packet inside the tunnel that arrives, bytes.
        sums: whether a packet arrives whose checksum the device was to fill in.
    """

    mtu: int
    sums: bool


class Prober:
    """Sends probes and hears answers in the event loop; answers others meanwhile. One path at a time.

    Args:
        chamber: whose sockets it uses.
    """

    def __init__(self, chamber: Chamber) -> None:
        self._chamber = chamber
        self._version = chamber.settings.vtep.version
        self._waiting: dict[bytes, asyncio.Future[None]] = {}
        self._wait = WAIT
        self._closed = False

    def open(self) -> None:
        """Begin to answer and to listen."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._chamber.echo.fileno(), self._answer)
        for one in (self._chamber.summed, self._chamber.plain):
            loop.add_reader(one.fileno(), self._hear, one)

    def close(self) -> None:
        """Stop both, before the chamber's sockets are closed; a measurement under way ends at once, in vain."""
        self._closed = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionAbortedError())
        loop = asyncio.get_running_loop()
        for one in (self._chamber.echo, self._chamber.summed, self._chamber.plain):
            loop.remove_reader(one.fileno())

    def _answer(self) -> None:
        try:
            data, peer = self._chamber.echo.recvfrom(NONCE)
            self._chamber.echo.sendto(data, peer)
        except OSError:
            return  # a node that we know nothing of, or one that has gone

    def _hear(self, one: socket.socket) -> None:
        try:
            data = one.recv(NONCE)
        except OSError:
            return
        waiting = self._waiting.get(data)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def measure(self, peer: IPAddress) -> Verdict | None:
        """Try the path to a node; None when it does not answer, or not for long enough."""
        self._wait = WAIT
        began = time.monotonic()
        if not await self._passes(peer, SMALL, FEW):
            return None
        took = time.monotonic() - began
        self._wait = min(WAIT, max(LEAST_WAIT, ROUNDS * took))
        sums = await self._passes(peer, SMALL, MANY, sums=True)
        mtu = self._chamber.mtu
        if not await self._passes(peer, mtu, MANY):
            mtu = await self._largest(peer, LEAST[self._version], mtu)
        if (mtu == 0 or not sums) and not await self._passes(peer, SMALL, FEW):
            return None  # it went while it was looked at
        return Verdict(mtu=mtu, sums=sums) if mtu else None

    async def _largest(self, peer: IPAddress, least: int, most: int) -> int:
        """Return the largest packet of a multiple of 4 bytes that passes; 0 when not even the least does."""
        if not await self._passes(peer, least, MANY):
            return 0
        good, bad = least // STEP, -(-most // STEP)
        while bad - good > 1:
            middle = (good + bad) // 2
            if await self._passes(peer, middle * STEP, FEW):
                good = middle
            else:
                bad = middle
        return good * STEP

    async def _passes(
        self, peer: IPAddress, size: int, attempts: int, *, sums: bool = False
    ) -> bool:
        """Tell whether one of some packets of ``size`` bytes is answered."""
        sender = self._chamber.summed if sums else self._chamber.plain
        padding = bytes(size - _HEADERS[self._version] - NONCE)
        for _ in range(attempts):
            if self._closed:
                return False
            nonce = os.urandom(NONCE)
            waiting = self._waiting[nonce] = asyncio.get_running_loop().create_future()
            try:
                sender.sendto(nonce + padding, (str(peer), PROBE_PORT))
                async with asyncio.timeout(self._wait):
                    await waiting
            except TimeoutError:
                continue
            except ConnectionAbortedError:
                return False
            except OSError:
                await asyncio.sleep(self._wait)  # too large, or no way there: as good as lost
                continue
            else:
                return True
            finally:
                del self._waiting[nonce]
        return False
