"""Join tokens: what a person passes to ``swarm join``.

``SWMTKN-1-<digest>-<secret>``, or ``SWMTKN-2-<0|1>-<digest>-<secret>`` in clusters that require
FIPS mode. The digest pins the cluster's root certificate, so that a joiner can fetch the root over a
connection nobody vouches for; the secret proves to the manager that the joiner was invited, and as what.

Source: SwarmKit ``ca/config.go``; both the digest vector and the lengths were run against engines.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from swarm.errors import InvalidArgumentError
from swarm.identity.ids import DIGITS, base36

PREFIX: Final = "SWMTKN"
DIGEST_LENGTH: Final = 50
SECRET_LENGTH: Final = 25
MAX_TEXT: Final = 128
"""Longest text looked at, characters; real tokens have 85 or 87."""

_SECRET_BYTES: Final = 16


class TokenError(InvalidArgumentError):
    """The text is not a join token; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """A join token, taken apart.

    Attributes:
        version: 1, or 2 when the cluster requires FIPS mode of its nodes (or once could).
        fips: the flag of version 2; always false in version 1.
        digest: SHA-256 of the root certificate's exact PEM bytes, base 36, 50 characters.
        secret: base 36, 25 characters; kept out of ``repr``.
    """

    version: int = 1
    fips: bool = False
    digest: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        head = f"{PREFIX}-1" if self.version == 1 else f"{PREFIX}-2-{int(self.fips)}"
        return f"{head}-{self.digest}-{self.secret}"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Take a token's text apart.

        Raises:
            TokenError: the text is no join token; the message never repeats the secret.
        """
        if not text:
            raise TokenError("the join token is empty")
        if len(text) > MAX_TEXT:
            raise TokenError(f"the join token is too long ({len(text)} characters)")
        parts = text.split("-")
        if parts[0] != PREFIX:
            raise TokenError(f"a join token starts with {PREFIX}-, this one does not")
        version, fips, digest, secret = _fields(parts)
        _check_base36("digest", digest, DIGEST_LENGTH)
        _check_base36("secret", secret, SECRET_LENGTH)
        if int(digest, 36) >= 1 << 256:
            raise TokenError("the digest in the join token is larger than any SHA-256 digest")
        return cls(version=version, fips=fips, digest=digest, secret=secret)


def _fields(parts: list[str]) -> tuple[int, bool, str, str]:
    version = parts[1] if len(parts) > 1 else ""
    if version not in {"1", "2"}:
        raise TokenError(f"the join token has version {version[:8]!r}; known are 1 and 2")
    wanted = 4 if version == "1" else 5
    if len(parts) != wanted:
        raise TokenError(
            f"a version {version} join token has {wanted} parts with dashes between them, "
            f"this one has {len(parts)}: was it cut off?"
        )
    if version == "2" and parts[2] not in {"0", "1"}:
        raise TokenError("the FIPS flag of the join token is neither 0 nor 1")
    return int(version), version == "2" and parts[2] == "1", parts[-2], parts[-1]


def _check_base36(what: str, text: str, length: int) -> None:
    if len(text) != length:
        raise TokenError(
            f"the {what} in the join token has {len(text)} characters instead of {length}: was it cut off?"
        )
    if any(character not in DIGITS for character in text):
        raise TokenError(
            f"the {what} in the join token has characters other than 0-9 and a-z (lower case)"
        )


def root_digest(root_pem: bytes) -> str:
    """Return the digest that pins a root: SHA-256 of its exact PEM bytes in base 36, 50 characters.

    The whole bundle counts, trailing newline included; byte-identical PEM must be served to joiners.
    """
    return base36(int.from_bytes(hashlib.sha256(root_pem).digest(), "big"), DIGEST_LENGTH)


def new_token(
    root_pem: bytes, entropy: Callable[[int], bytes] = secrets.token_bytes, *, fips: bool = False
) -> JoinToken:
    """Make a token with a new secret for a root; ``fips`` makes it one of version 2."""
    return JoinToken(
        version=2 if fips else 1,
        fips=fips,
        digest=root_digest(root_pem),
        secret=base36(int.from_bytes(entropy(_SECRET_BYTES), "big"), SECRET_LENGTH),
    )


def matches_root(token: JoinToken, root_pem: bytes) -> bool:
    """Say whether a root fetched from a manager is the one the token pins."""
    return hmac.compare_digest(token.digest, root_digest(root_pem))
