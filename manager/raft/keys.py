"""The data key under which raft state is sealed, and the file that holds it wrapped.

Two kinds of wrapping: ``clear`` (autolock off: the key stands in a file only its owner may read)
and ``unlock`` (autolock on: AES-256-GCM under the operator's unlock key). The file may hold two
data keys while the state is re-sealed from the old to the new one.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from manager.raft.errors import CorruptStateError, LockedError

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_KEY_FILE_BYTES = 4096
_AAD = b"overswarm raft data key 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKeys:
    """Data keys by number; the highest seals, all unseal."""

    keys: dict[int, bytes]

    @classmethod
    def fresh(cls) -> DataKeys:
        """Make a first key."""
        return cls(keys={1: secrets.token_bytes(KEY_BYTES)})

    @property
    def current(self) -> int:
        """Number of the key that seals."""
        return max(self.keys)

    def with_next(self) -> DataKeys:
        """Add a new key beside the current one."""
        return DataKeys(
            keys={
                self.current: self.keys[self.current],
                self.current + 1: secrets.token_bytes(KEY_BYTES),
            }
        )

    def only_current(self) -> DataKeys:
        """Forget the older keys."""
        return DataKeys(keys={self.current: self.keys[self.current]})


def save_keys(path: Path, keys: DataKeys, unlock_key: bytes | None) -> None:
    """Write the key file whole or not at all, readable by its owner only.

    Args:
        path: the file.
        keys: what to write.
        unlock_key: 32 bytes, or None to store the keys in the clear.
    """
    document = {
        "version": 1,
        "wrap": "clear" if unlock_key is None else "unlock",
        "keys": {str(number): _wrap(key, unlock_key) for number, key in keys.keys.items()},
    }
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_directory(path.parent)


def load_keys(path: Path, unlock_key: bytes | None) -> DataKeys:
    """Read and unwrap the key file.

    Raises:
        LockedError: it is wrapped and no unlock key, or a wrong one, was given.
        CorruptStateError: it is missing, or not a key file.
    """
    document = _read(path)
    if document["wrap"] == "unlock" and unlock_key is None:
        raise LockedError("This manager is locked; unlock it with its unlock key.")
    try:
        wrapped = {int(number): base64.b64decode(text) for number, text in document["keys"].items()}
    except (ValueError, TypeError, AttributeError) as cause:
        raise _corrupt(path) from cause
    unwrap_key = unlock_key if document["wrap"] == "unlock" else None
    keys = {number: _unwrap(path, value, unwrap_key) for number, value in wrapped.items()}
    if not 1 <= len(keys) <= 2 or any(not 0 < number < 2**31 for number in keys):
        raise _corrupt(path)
    return DataKeys(keys=keys)


def is_locked(path: Path) -> bool:
    """Return whether the key file needs an unlock key.

    Raises:
        CorruptStateError: it is missing, or not a key file.
    """
    return bool(_read(path)["wrap"] == "unlock")


def rewrap(path: Path, old: bytes | None, new: bytes | None) -> None:
    """Change the wrapping: set, change or (``new`` None) drop the unlock key.

    Raises:
        LockedError: ``old`` does not unwrap the file.
        CorruptStateError: it is missing, or not a key file.
    """
    save_keys(path, load_keys(path, old), new)


def sync_directory(path: Path) -> None:
    """Make a rename or a new file in ``path`` survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_KEY_FILE_BYTES))
    except FileNotFoundError as cause:
        raise CorruptStateError(
            f"{path} is missing; without it the raft state cannot be read. Restore it from a "
            "backup, or remove the state and join this manager again."
        ) from cause
    except ValueError as cause:
        raise _corrupt(path) from cause
    if (
        not isinstance(document, dict)
        or document.get("version") != 1
        or document.get("wrap") not in {"clear", "unlock"}
        or not isinstance(document.get("keys"), dict)
    ):
        raise _corrupt(path)
    return document


def _wrap(key: bytes, unlock_key: bytes | None) -> str:
    if unlock_key is not None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        key = nonce + AESGCM(unlock_key).encrypt(nonce, key, _AAD)
    return base64.b64encode(key).decode()


def _unwrap(path: Path, wrapped: bytes, unlock_key: bytes | None) -> bytes:
    if unlock_key is not None:
        try:
            wrapped = AESGCM(unlock_key).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _AAD)
        except (InvalidTag, ValueError) as cause:
            raise LockedError("The unlock key does not fit this manager.") from cause
    if len(wrapped) != KEY_BYTES:
        raise _corrupt(path)
    return wrapped


def _corrupt(path: Path) -> CorruptStateError:
    return CorruptStateError(
        f"{path} is not a readable key file. Restore it from a backup, or remove the state and "
        "join this manager again."
    )
