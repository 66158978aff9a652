"""From a join token to a certificate.

The root certificate is fetched over a connection nobody vouches for and believed only if the token pins
it; everything after that is verified. A wrong token, a foreign cluster or a refused connection is said at
once: engines repeat each of them five times and show it after ten seconds.

Source: SwarmKit ``ca/certificates.go``, ``node/node.go``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from agent.node import certificate
from agent.node.address import split_wish
from swarm.errors import (
    DeadlineError,
    InvalidArgumentError,
    PermissionDeniedError,
    StaleError,
    SwarmError,
    UnavailableError,
)
from swarm.identity.certs import Credentials, Identity, verify_chain
from swarm.identity.dialer import ROOT_NAME, DialError, TlsDialer
from swarm.identity.sockets import join_address
from swarm.identity.token import JoinToken, matches_root
from swarm.model import NodeAvailability

MAX_REMOTES: Final = 16
_TRIES: Final = 5
_PAUSE: Final = 1.0
"""Tries, and seconds between them, while the cluster elects a leader."""

log = structlog.get_logger(component="join")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What joining gave."""

    credentials: Credentials
    identity: Identity
    manager: str
    """``host:port`` of the manager that let this node in."""


def targets(remotes: Sequence[str]) -> list[str]:
    """Return the managers to try as ``host:port``.

    Raises:
        InvalidArgumentError: there is none, too many, or one is malformed.
    """
    if not remotes:
        raise InvalidArgumentError("at least one manager address is needed to join a swarm")
    if len(remotes) > MAX_REMOTES:
        raise InvalidArgumentError(f"there are more than {MAX_REMOTES} manager addresses")
    return [join_address(*split_wish(remote)) for remote in remotes]


async def join(
    remotes: Sequence[str],
    token_text: str,
    *,
    directory: Path,
    availability: NodeAvailability = NodeAvailability.ACTIVE,
) -> Joined:
    """Get into a cluster: try the managers in order until one answers.

    Args:
        remotes: ``host[:port]`` each.
        token_text: as given by a manager.
        directory: for sockets, private to this call.
        availability: of the new node.

    Raises:
        TokenError: the token is malformed.
        PermissionDeniedError: the token is another cluster's.
        InvalidArgumentError: the manager does not know the token.
        UnavailableError: no manager could be reached; the text says why for each.
    """
    token = JoinToken.parse(token_text)
    failures: list[SwarmError] = []
    for target in targets(remotes):
        try:
            return await _join_one(target, token, directory, availability)
        except (UnavailableError, DeadlineError, StaleError) as error:
            log.warning("join.manager.failed", manager=target, reason=str(error))
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise UnavailableError("; ".join(str(error) for error in failures))


async def _join_one(
    target: str, token: JoinToken, directory: Path, availability: NodeAvailability
) -> Joined:
    async with _dialing(TlsDialer(directory=directory)) as dialer:
        channel = dialer.fetch_unverified(target)
        try:
            root = await certificate.fetch_root(channel, dialer, target)
        finally:
            await channel.close()
        if not matches_root(token, root):
            raise PermissionDeniedError(
                f"the join token belongs to another cluster than {target} "
                "(the cluster's certificate does not match the token)"
            )
        dialer.reload(Credentials(root_pem=root))
        node_id, cert_pem, key_pem = await _request(dialer, target, token, availability)
    identity = verify_chain(cert_pem, root, datetime.now(UTC))
    if identity.node_id != node_id:
        raise PermissionDeniedError(f"{target} issued a certificate for another node")
    return Joined(
        credentials=Credentials(root_pem=root, cert_pem=cert_pem, key_pem=key_pem),
        identity=identity,
        manager=target,
    )


async def _request(
    dialer: TlsDialer, target: str, token: JoinToken, availability: NodeAvailability
) -> tuple[str, bytes, bytes]:
    for attempt in range(_TRIES):
        channel = dialer.channel(target, server_name=ROOT_NAME)
        try:
            return await certificate.request(
                channel, dialer, target, token=str(token), availability=availability
            )
        except DialError:
            raise
        except (UnavailableError, StaleError) as error:
            log.info("join.manager.busy", manager=target, reason=str(error))
            if attempt == _TRIES - 1:
                raise
        finally:
            await channel.close()
        await asyncio.sleep(_PAUSE)
    raise AssertionError  # pragma: no cover  # the last attempt raises


@contextlib.asynccontextmanager
async def _dialing(dialer: TlsDialer) -> AsyncIterator[TlsDialer]:
    """Run a dialer for the length of a block; the block's error leaves as it is, in no group."""
    failure: SwarmError | None = None
    async with asyncio.TaskGroup() as group:
        running = group.create_task(dialer.run())
        try:
            yield dialer
        except SwarmError as error:
            failure = error
        finally:
            running.cancel()
    if failure is not None:
        raise failure
