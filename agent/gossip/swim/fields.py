"""Bodies of messages: msgpack of the old specification.

Maps keyed by CamelCase names in byte order, strings and byte strings both raw (no str8, no bin).
Reading accepts every integer form, the newer string forms, unknown keys and missing fields (their
zero), as the engines do.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from swarm.errors import WireError

MAX_NAME: Final = 255  # bytes of a node name
_U32 = 0xFFFFFFFF


def pack(fields: dict[str, Any]) -> bytes:
    """Return one map; its keys must be in byte order."""
    packed: bytes = msgpack.packb(fields, use_bin_type=False)
    return packed


class Fields:
    """One decoded map, read field by field with Go's zero values for what is missing.

    Every method raises WireError when the field is something else.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: object) -> None:
        if not isinstance(fields, dict):
            raise WireError("message body is not a map")
        self._fields = fields

    def number(self, name: bytes, limit: int = _U32) -> int:
        """Return an integer from 0 to ``limit``."""
        value = self._fields.get(name)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value <= limit:
            raise WireError(f"field {name.decode()} is not an integer from 0 to {limit}")
        return value

    def flag(self, name: bytes) -> bool:
        """Return a boolean."""
        value = self._fields.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise WireError(f"field {name.decode()} is not a boolean")
        return value

    def raw(self, name: bytes, limit: int) -> bytes:
        """Return a string of at most ``limit`` bytes."""
        value = self._fields.get(name)
        if value is None:
            return b""
        if not isinstance(value, bytes) or len(value) > limit:
            raise WireError(f"field {name.decode()} is not a string of at most {limit} bytes")
        return value

    def text(self, name: bytes, limit: int = MAX_NAME) -> str:
        """Return a string of at most ``limit`` bytes as text."""
        try:
            return self.raw(name, limit).decode()
        except UnicodeDecodeError:
            raise WireError(f"field {name.decode()} is not UTF-8") from None


class Reader:
    """Concatenated msgpack values, then raw bytes; malformed ones raise WireError."""

    __slots__ = ("_data", "_unpacker")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._unpacker = msgpack.Unpacker(
            raw=True,
            strict_map_key=False,
            max_buffer_size=len(data) + 1,
            max_array_len=64,
            max_map_len=64,
            max_ext_len=64,
        )
        self._unpacker.feed(data)

    def fields(self) -> Fields:
        """Return the next value, which has to be a map."""
        try:
            value = self._unpacker.unpack()
        except (msgpack.UnpackException, ValueError, TypeError, OverflowError) as error:
            raise WireError("message body is not msgpack") from error
        return Fields(value)

    def rest(self) -> bytes:
        """Return what follows the values read."""
        return self._data[self._unpacker.tell() :]
