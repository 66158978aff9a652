"""nftables in containers' namespaces, without waiting for its end.

Before the kernel closes the socket of an nftables context, it ends what was deleted in that namespace, and
for that waits until no processor can still be looking at it: 5 to 40 ms, in which nothing happens that
anybody depends on. So contexts are closed by threads of their own.

Source: Linux ``net/netfilter/nf_tables_api.c``, ``nft_rcv_nl_event``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, Self

from swarm.kernel.nft import Nft

CLOSERS: Final = 16
"""Contexts that are being closed at one time; the next one waits for the oldest."""


class Tables:
    """Opens contexts, and closes them in threads; a context manager that waits for the last of them."""

    def __init__(self) -> None:
        self._closers = ThreadPoolExecutor(CLOSERS, thread_name_prefix="nft-closer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closers.shutdown()

    @contextmanager
    def here(self) -> Iterator[Nft]:
        """Open a context in the calling thread's namespace for the ``with`` block.

        Raises:
            HostError: as :class:`~swarm.kernel.nft.Nft`.
        """
        nft = Nft()
        try:
            yield nft
        finally:
            try:
                self._closers.submit(nft.close)
            except RuntimeError:  # after the end of this object
                nft.close()
