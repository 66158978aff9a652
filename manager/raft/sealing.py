"""Records on disk, sealed with AES-256-GCM: unreadable without the data key, unalterable, unmovable.

What a record is and where it stands is bound into its seal, so that none can take another's place.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from manager.raft.database import corrupt
from manager.raft.keys import NONCE_BYTES, DataKeys
from manager.raft.messages import Entry

_NUMBER_BYTES = 4


@dataclass(slots=True, kw_only=True)
class Sealer:
    """Seals under the newest data key, opens under all.

    Attributes:
        path: the file, for errors.
        owner: whose state it is; bound into every seal.
        keys: data keys by number.
    """

    path: Path
    owner: bytes
    keys: DataKeys

    def seal(self, place: bytes, data: bytes) -> bytes:
        """Return key number, nonce and sealed data of the record at ``place``."""
        number = self.keys.current
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(self.keys.keys[number]).encrypt(nonce, data, place + self.owner)
        return number.to_bytes(_NUMBER_BYTES, "big") + nonce + sealed

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """Return the data of the record at ``place``.

        Raises:
            CorruptStateError: it is not what was sealed there.
        """
        if len(sealed) < _NUMBER_BYTES + NONCE_BYTES:
            raise corrupt(self.path, "a record is too short")
        key = self.keys.keys.get(int.from_bytes(sealed[:_NUMBER_BYTES], "big"))
        if key is None:
            raise corrupt(self.path, "a record is sealed under an unknown data key")
        nonce, body = sealed[_NUMBER_BYTES:][:NONCE_BYTES], sealed[_NUMBER_BYTES + NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, body, place + self.owner)
        except InvalidTag as cause:
            what = place.split(b"\0")[0].decode()
            raise corrupt(self.path, f"the seal of a record ({what}) is broken") from cause


def entry_place(entry: Entry) -> bytes:
    """Return the place of a log entry."""
    return b"entry\0" + struct.pack(">QQB", entry.index, entry.term, entry.kind)


def chunk_place(seq: int, snapshot: tuple[int, int]) -> bytes:
    """Return the place of a piece of the snapshot at (index, term)."""
    return b"snapshot\0" + struct.pack(">QQQ", seq, *snapshot)
