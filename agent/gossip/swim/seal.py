"""Encryption of datagrams and stream frames, and the label header in front of them.

A sealed body is version (1 byte), nonce (12), AES-GCM ciphertext, tag (16). Version 1, the only
one sent, has no padding; version 0 pads as PKCS7 does. A stream frame is the byte 10, the length
of the sealed body (u32, big endian) and the body; these five bytes are authenticated with it. A
label, which Swarm never uses, is written in front in clear and authenticated too.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag

from agent.gossip.swim.keyring import Keyring
from swarm.errors import WireError

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
OVERHEAD: Final = 1 + NONCE_SIZE + TAG_SIZE  # of version 1
FRAME_HEADER_SIZE: Final = 5
MAX_FRAME: Final = 20 << 20  # bytes of a sealed body; every engine refuses more
LARGE_FRAME: Final = 12 << 20  # from here on the limit is near, and somebody should know
LABEL_MAGIC: Final = 244
ENCRYPTED: Final = 10
_BLOCK = 16
_FRAME_HEADER = struct.Struct(">BI")


class SealError(WireError):
    """Not sealed with a key of ours, or not for this cluster."""


def identity(sealed: bytes) -> bytes:
    """Return what tells a datagram or frame from every other: its tag, which only a key can make."""
    return sealed[-TAG_SIZE:]


def seal_datagram(plain: bytes, keyring: Keyring, nonce: bytes, *, label: bytes = b"") -> bytes:
    """Return ``plain`` sealed for one datagram."""
    return _label_header(label) + _seal(plain, keyring, nonce, label, version=1)


def seal_frame(
    plain: bytes, keyring: Keyring, nonce: bytes, *, label: bytes = b"", dialling: bool = True
) -> bytes:
    """Return ``plain`` as one frame of a stream; only the dialling side writes the label."""
    header = _FRAME_HEADER.pack(ENCRYPTED, len(plain) + OVERHEAD)
    body = _seal(plain, keyring, nonce, header + label, version=1)
    return (_label_header(label) if dialling else b"") + header + body


def open_datagram_untrusted(data: bytes, keyring: Keyring, *, label: bytes = b"") -> bytes:
    """Return what one datagram holds.

    Raises:
        SealError: the label is not ours, or no key opens it.
    """
    body = data[label_size_untrusted(data[:257], label=label) :]
    return _open_untrusted(body, keyring, label)


def label_size_untrusted(start: bytes, *, label: bytes = b"") -> int:
    """Return how many bytes the label header at ``start`` takes; 0 when there is none and none is due.

    Raises:
        SealError: the header is cut short, empty, or not ``label``.
    """
    if not start.startswith(bytes((LABEL_MAGIC,))):
        if label:
            raise SealError("label is missing")
        return 0
    if len(start) < 2 or not start[1] or len(start) < 2 + start[1]:
        raise SealError("label header is cut short or empty")
    if start[2 : 2 + start[1]] != label:
        raise SealError("label is not ours")
    return 2 + start[1]


def frame_size_untrusted(header: bytes) -> int:
    """Return the length of the sealed body that follows a frame's five header bytes.

    Raises:
        SealError: not an encrypted frame, or one larger than any engine accepts.
    """
    if len(header) != FRAME_HEADER_SIZE:
        raise SealError("frame header is cut short")
    kind, size = _FRAME_HEADER.unpack(header)
    if kind != ENCRYPTED:
        raise SealError("stream is not encrypted")
    if not OVERHEAD <= size <= MAX_FRAME:
        raise SealError(f"frame of {size} bytes is outside the limits")
    return int(size)


def open_frame_untrusted(
    header: bytes, body: bytes, keyring: Keyring, *, label: bytes = b""
) -> bytes:
    """Return what one stream frame holds.

    Raises:
        SealError: no key opens it.
    """
    return _open_untrusted(body, keyring, header + label)


def _label_header(label: bytes) -> bytes:
    return bytes((LABEL_MAGIC, len(label))) + label if label else b""


def _seal(plain: bytes, keyring: Keyring, nonce: bytes, extra: bytes, *, version: int) -> bytes:
    if version == 0:
        missing = _BLOCK - len(plain) % _BLOCK
        plain += bytes((missing,)) * missing
    return bytes((version,)) + nonce + keyring.sending.encrypt(nonce, plain, extra or None)


def _open_untrusted(body: bytes, keyring: Keyring, extra: bytes) -> bytes:
    if len(body) < OVERHEAD:
        raise SealError("sealed body is too short")
    version = body[0]
    if version > 1:
        raise SealError(f"encryption version {version} is unknown")
    nonce, sealed = body[1 : 1 + NONCE_SIZE], body[1 + NONCE_SIZE :]
    for cipher in keyring.accepting:
        try:
            plain = cipher.decrypt(nonce, sealed, extra or None)
        except InvalidTag:
            continue
        return _unpad_untrusted(plain) if version == 0 else plain
    raise SealError("no installed key opens this message")


def _unpad_untrusted(plain: bytes) -> bytes:
    size = plain[-1] if plain else 0
    if not 1 <= size <= _BLOCK or plain[-size:] != bytes((size,)) * size:
        raise SealError("padding is malformed")
    return plain[:-size]
