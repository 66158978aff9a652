"""A node's certificate files, replaced so that a crash leaves the old set or the new one.

Three files have to change together and a file system replaces only one at a time. So the new set is
staged beside the old (``*.new``), the key first; the commit is the rename of the key. On load, a staged
key means the change never happened (the rest is swept away, the key last); staged files without a
staged key mean it did, and their renames are finished. The agent and the manager of one node share the
directory, so every call holds a lock on it: nobody takes another's change under way for one cut short.

Source of names and forms: SwarmKit ``ca/keyreadwriter.go``, ``ca/config.go``.
"""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization

from swarm.errors import HostError, PreconditionError
from swarm.identity.certs import CertificateError, Credentials, key_matches
from swarm.identity.sockets import private_directory

ROOT_FILE: Final = "swarm-root-ca.crt"
CERT_FILE: Final = "swarm-node.crt"
KEY_FILE: Final = "swarm-node.key"
STAGED: Final = ".new"
MAX_FILE: Final = 1 << 20

_NAMES: Final = (KEY_FILE, CERT_FILE, ROOT_FILE)  # in the order they are staged and renamed


class KeyStoreError(HostError):
    """The certificate files are unusable; the text says what to do."""


class LockedError(PreconditionError):
    """The private key is encrypted and no (or a wrong) unlock key was given."""


class KeyStore:
    """The certificate directory of one node.

    Blocking file calls, a few fsyncs in ``save``: call it through ``asyncio.to_thread``.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, unlock_key: bytes | None = None) -> Credentials | None:
        """Read the files; None when this node has never got a root.

        Args:
            unlock_key: 32 bytes, when the private key was saved under one.

        Raises:
            KeyStoreError: a file is unreadable or missing, or key and certificate do not match.
            LockedError: the key is encrypted and ``unlock_key`` does not open it.
        """
        with self._exclusive():
            self._recover()
            root, cert, key = (self._read(name) for name in (ROOT_FILE, CERT_FILE, KEY_FILE))
        if root is None and cert is None and key is None:
            return None
        if root is None:
            raise self._broken(f"{ROOT_FILE} is missing")
        if cert is None and key is None:
            return Credentials(root_pem=root)
        if cert is None or key is None:
            raise self._broken(f"{CERT_FILE if cert is None else KEY_FILE} is missing")
        plain = self._decrypted(key, unlock_key)
        try:
            matching = key_matches(cert, plain)
        except (CertificateError, ValueError) as error:
            raise self._broken(f"{CERT_FILE} or {KEY_FILE} cannot be parsed") from error
        if not matching:
            raise self._broken(f"{KEY_FILE} is not the key of {CERT_FILE}")
        return Credentials(root_pem=root, cert_pem=cert, key_pem=plain)

    def save(self, credentials: Credentials, unlock_key: bytes | None = None) -> None:
        """Replace all files in one step; with ``unlock_key`` (32 bytes) the private key is encrypted.

        Raises:
            KeyStoreError: a file cannot be written; the old set is still whole.
            PreconditionError: the key is not the certificate's, or a root alone would replace a node's
                certificate (that takes :meth:`clear`).
        """
        if credentials.cert_pem is None or credentials.key_pem is None:
            self._save_root(credentials.root_pem)
            return
        if not key_matches(credentials.cert_pem, credentials.key_pem):
            raise PreconditionError("the private key does not belong to the certificate")
        key = _encrypted(credentials.key_pem, unlock_key) if unlock_key else credentials.key_pem
        contents = dict(zip(_NAMES, (key, credentials.cert_pem, credentials.root_pem), strict=True))
        try:
            private_directory(self.directory)
            with self._exclusive():
                self._recover()
                self._replace(contents)
        except OSError as error:
            raise KeyStoreError(
                f"cannot write certificates to {self.directory}: {error.strerror}"
            ) from error

    def _replace(self, contents: dict[str, bytes]) -> None:
        for name in _NAMES:
            self._write(name + STAGED, contents[name])
            self._sync_directory()  # the staged key must be on disk before the rest may be
        for name in _NAMES:
            (self.directory / (name + STAGED)).replace(self.directory / name)
            self._sync_directory()  # the key's rename commits, so it reaches the disk first

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the directory against other processes and threads; one that does not exist needs no lock."""
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove every file of the store; a store that is empty already is fine.

        Raises:
            KeyStoreError: a file cannot be removed.
        """
        staged = [name + STAGED for name in reversed(_NAMES)]
        try:
            with self._exclusive():
                for name in (*staged, ROOT_FILE + ".tmp", CERT_FILE, KEY_FILE, ROOT_FILE):
                    (self.directory / name).unlink(missing_ok=True)
                if self.directory.exists():
                    self._sync_directory()
        except OSError as error:
            raise KeyStoreError(
                f"cannot remove certificates from {self.directory}: {error.strerror}"
            ) from error

    def _save_root(self, root_pem: bytes) -> None:
        """Write the root alone (a node before its certificate): one file, one rename."""
        if any((self.directory / name).exists() for name in (CERT_FILE, KEY_FILE)):
            raise PreconditionError(f"{self.directory} holds a node's certificate already")
        try:
            private_directory(self.directory)
            self._write(ROOT_FILE + ".tmp", root_pem)
            (self.directory / (ROOT_FILE + ".tmp")).replace(self.directory / ROOT_FILE)
            self._sync_directory()
        except OSError as error:
            raise KeyStoreError(
                f"cannot write certificates to {self.directory}: {error.strerror}"
            ) from error

    def _recover(self) -> None:
        """Finish or undo a change that a crash cut in two."""
        staged = [name for name in _NAMES if (self.directory / (name + STAGED)).exists()]
        if not staged:
            return
        committed = KEY_FILE not in staged
        try:
            for name in staged if committed else reversed(staged):
                path = self.directory / (name + STAGED)
                if committed:
                    path.replace(self.directory / name)
                else:
                    path.unlink()
                self._sync_directory()
        except OSError as error:
            raise KeyStoreError(
                f"cannot finish a change in {self.directory}: {error.strerror}"
            ) from error

    def _read(self, name: str) -> bytes | None:
        path = self.directory / name
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyStoreError(f"cannot read {path}: {error.strerror}") from error
        if len(content) > MAX_FILE:
            raise self._broken(f"{name} is larger than {MAX_FILE} bytes")
        return content

    def _write(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.unlink(missing_ok=True)  # a leftover's mode or link must not outlive it
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _decrypted(self, key: bytes, unlock_key: bytes | None) -> bytes:
        if b"ENCRYPTED PRIVATE KEY" not in key:
            return key
        if unlock_key is None:
            raise LockedError("this manager is locked: give its unlock key")
        try:
            opened = serialization.load_pem_private_key(key, _passphrase(unlock_key))
        except ValueError as error:
            raise LockedError("the unlock key does not open this manager") from error
        return opened.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def _broken(self, what: str) -> KeyStoreError:
        return KeyStoreError(
            f"{what} in {self.directory}: restore the three files from one backup, "
            "or remove them and join the swarm again"
        )


def _passphrase(unlock_key: bytes) -> bytes:
    return base64.b64encode(unlock_key)


def _encrypted(key_pem: bytes, unlock_key: bytes) -> bytes:
    key = serialization.load_pem_private_key(key_pem, password=None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(_passphrase(unlock_key)),
    )
