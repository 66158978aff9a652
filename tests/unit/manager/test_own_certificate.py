"""The manager's own certificate: made again when it is of no use, renewed in its later life."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

import pytest

from manager.clock import Clock
from swarm.identity.certs import certificates_untrusted
from swarm.identity.keystore import KeyStore

pytestmark = pytest.mark.slow


def serial(swarm: Any) -> int:
    credentials = KeyStore(swarm.state_dir / "certificates").load()
    assert credentials is not None
    assert credentials.cert_pem is not None
    return certificates_untrusted(credentials.cert_pem)[0].serial_number


async def test_a_restart_keeps_the_certificate(swarm: Any) -> None:
    before = serial(swarm)
    await swarm.stop()
    await swarm.start()
    assert serial(swarm) == before


async def test_a_lost_certificate_is_made_again(swarm: Any) -> None:
    before = serial(swarm)
    await swarm.stop()
    KeyStore(swarm.state_dir / "certificates").clear()
    await swarm.start()
    assert serial(swarm) != before
    assert await swarm.worker()


async def test_an_expired_certificate_is_made_again(swarm: Any) -> None:
    """A manager that was off for a year comes back by itself."""
    before = serial(swarm)
    await swarm.stop()
    later = 365 * 86400 * 10**9
    swarm.clock = Clock(wall=lambda: time.time_ns() + later)
    await swarm.start()
    assert serial(swarm) != before


async def test_an_old_certificate_is_renewed_while_serving(swarm: Any) -> None:
    """Past 80 % of its life at the latest; new connections are served with the new one."""
    before = serial(swarm)
    await swarm.stop()
    later = 80 * 86400 * 10**9
    swarm.clock = Clock(wall=lambda: time.time_ns() + later)
    await swarm.start()
    async with asyncio.timeout(10):
        while await served_serial(swarm) == before:  # noqa: ASYNC110  # the port tells nobody
            await asyncio.sleep(0.05)
    node_id = next(iter(swarm.manager.managers()))
    stored = swarm.view.nodes.require(node_id).certificate
    assert certificates_untrusted(stored.certificate)[0].serial_number == serial(swarm)


async def served_serial(swarm: Any) -> int:
    """Return the serial number of the certificate the port shows now."""
    address = ("127.0.0.1", swarm.port)
    pem = await asyncio.to_thread(ssl.get_server_certificate, address)
    return certificates_untrusted(pem.encode())[0].serial_number
