"""nftables without a child process: libnftables through ctypes.

Commands go in as nft's own text, one transaction a call; listings come out as JSON. The context
belongs to the namespace it was made in; run it from there.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

from swarm.errors import HostError

LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4


class NftError(HostError):
    """nftables refused a transaction; nothing of it took effect."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HostError(f"{LIBRARY} is missing: install the Debian package libnftables1") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_buffer_output.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_buffer_error.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_output_buffer.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_output_set_flags.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    return library


class Nft:
    """One libnftables context; used by one thread."""

    def __init__(self) -> None:
        self._library = _load()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise HostError("libnftables cannot open its netlink socket")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context; it is not used after."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str) -> None:
        """Run nft commands as one transaction.

        Raises:
            NftError: they were refused; nothing changed.
        """
        self._run(commands, 0)

    def table(self, family: str, name: str) -> list[dict[str, Any]] | None:
        """Return the objects of a table as libnftables-json(5) shows them, None without it."""
        try:
            text = self._run(f"list table {family} {name}", _OUTPUT_JSON)
        except NftError as error:
            if "No such file or directory" in str(error):
                return None
            raise
        objects: list[dict[str, Any]] = json.loads(text)["nftables"]
        return objects

    def chains(self, family: str, name: str) -> set[str]:
        """Return the names of a table's chains; none without it."""
        listing = self.table(family, name) or ()
        return {item["chain"]["name"] for item in listing if "chain" in item}

    def _run(self, commands: str, flags: int) -> str:
        self._library.nft_ctx_output_set_flags(self._context, flags)
        code = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        error = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if code != 0:
            first = error.decode(errors="replace").strip().split("\n")[0]
            raise NftError(f"nftables: {first}")
        return bytes(output).decode()
