"""Talk to nftables through libnftables: JSON in, JSON out, one atomic transaction per call.

A context belongs to the network namespace in which it was made, because libnftables opens its netlink
socket then. So::

    with in_netns(path), Nft() as nft:
        nft.run([{"add": {"table": {"family": "ip", "name": "mine"}}}])
"""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from swarm.errors import HostError, SwarmError
from swarm.kernel.descriptors import lowest_free

LIBRARY: Final = "libnftables.so.1"
LAST_DESCRIPTOR: Final = 1023
"""libnftables waits for its socket with select(2), and a descriptor beyond FD_SETSIZE aborts the process.

Whoever opens descriptors by the thousand keeps them above it: :func:`swarm.kernel.descriptors.lifted`.
"""

_OUTPUT_JSON: Final = 1 << 4  # NFT_CTX_OUTPUT_JSON, nftables/libnftables.h
_SPARE: Final = 24
"""Descriptors that other threads may open between the look and the opening."""

Command = Mapping[str, Any]


class NftError(SwarmError):
    """nftables refused a transaction; nothing of it was applied. The text is libnftables' own."""

    status = "FAILED_PRECONDITION"


@functools.cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HostError(f"{LIBRARY} is missing on this host: install libnftables1") from error
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_free.restype = None
    library.nft_ctx_output_set_flags.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    library.nft_ctx_output_set_flags.restype = None
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    return library


class Nft:
    """One libnftables context, bound to the network namespace in which it was made.

    Not for use by two threads at once. Making one costs a fraction of a millisecond, so short-lived
    ones are fine.

    Raises:
        HostError: the library is missing, netlink cannot be opened, or too many files are open.
    """

    def __init__(self) -> None:
        self._library = _load()
        if (free := lowest_free()) > LAST_DESCRIPTOR - _SPARE:
            raise HostError(
                f"too many open files for nftables: the next one would be number {free}"
            )
        context = self._library.nft_ctx_new(0)
        if not context:
            raise HostError("libnftables could not open its netlink socket")
        self._context: int | None = context
        self._library.nft_ctx_output_set_flags(context, _OUTPUT_JSON)
        self._library.nft_ctx_buffer_output(context)
        self._library.nft_ctx_buffer_error(context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and its netlink socket; closing twice is fine."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: Sequence[Command]) -> list[dict[str, Any]]:
        """Run the commands as one transaction: all of them take effect, or none.

        Args:
            commands: elements of the ``nftables`` array, such as ``{"add": {"table": ...}}``.

        Returns:
            The objects that list commands answered with; empty otherwise.

        Raises:
            NftError: nftables refused; ``str()`` of it is the library's explanation.

        Source: libnftables-json(5).
        """
        if self._context is None:
            raise ValueError("the nftables context is closed")
        text = json.dumps({"nftables": list(commands)}).encode()
        failed = self._library.nft_run_cmd_from_buffer(self._context, text)
        output = self._library.nft_ctx_get_output_buffer(self._context)
        complaint = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            reason = complaint.decode("utf-8", "replace").strip() or "no reason given"
            raise NftError(f"nftables refused the change: {reason}")
        if not output:
            return []
        listed: list[dict[str, Any]] = json.loads(output)["nftables"]
        return [item for item in listed if "metainfo" not in item]
