"""What a node tells managers about itself."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Final

from agent.node import host
from swarm.identity import certs
from swarm.model import (
    EngineDescription,
    NodeDescription,
    NodeTLSInfo,
    Platform,
    PluginDescription,
    Resources,
)

PLUGINS: Final = (PluginDescription(type="Network", name="overlay"),)
"""Schedulers place attachments to overlay networks only where this plugin is announced."""


OWN_LABEL: Final = "overswarm.version"
"""Engine label that tells our managers this agent waits for its addresses itself, so that they need not
hold its tasks back the way a Docker engine needs it."""


@cache
def version() -> str:
    """Return the version of this program."""
    return metadata.version("overswarm")


def describe(hostname: str, credentials: certs.Credentials) -> NodeDescription:
    """Describe this node; the same until its certificate's issuer or the machine changes.

    Raises:
        CertificateError: the certificate does not belong to the roots.
    """
    architecture, system = host.machine()
    nano_cpus, memory = host.resources()
    info = certs.tls_info(credentials, datetime.now(UTC))
    return NodeDescription(
        hostname=hostname,
        platform=Platform(architecture=architecture, os=system),
        resources=Resources(nano_cpus=nano_cpus, memory_bytes=memory),
        engine=EngineDescription(
            engine_version=version(), labels={OWN_LABEL: version()}, plugins=PLUGINS
        ),
        tls_info=NodeTLSInfo(
            trust_root=info.trust_root,
            cert_issuer_subject=info.issuer_subject,
            cert_issuer_public_key=info.issuer_public_key,
        ),
    )
