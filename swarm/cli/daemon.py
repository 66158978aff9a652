"""``swarm daemon``: become the node's agent."""

from __future__ import annotations

import os
import sys

import click

from swarm.log import LEVELS


@click.command()
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    default="/var/lib/swarm",
    show_default=True,
    help="Where identity, the Raft log and attachments are kept.",
)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False),
    default="/run/swarm",
    show_default=True,
    help="Where sockets, namespaces and containers live until the next boot.",
)
@click.option(
    "--socket-group", default="swarm", show_default=True, help="Group that may use the local API."
)
@click.option(
    "--metrics-addr", default="", metavar="IP:PORT", help="Serve Prometheus metrics here; else off."
)
@click.option("--hostname", default="", help="Name of this node; the host's own when absent.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
def daemon(
    state_dir: str,
    run_dir: str,
    socket_group: str,
    metrics_addr: str,
    hostname: str,
    log_level: str,
) -> None:
    """Run this host's node: local API, session, gossip, data plane and names; ends with SIGTERM.

    A restart loses no traffic: what is in the kernel stays and is taken over.
    """
    arguments = ["--state-dir", state_dir, "--run-dir", run_dir, "--log-level", log_level]
    arguments += ["--socket-group", socket_group]
    if metrics_addr:
        arguments += ["--metrics-addr", metrics_addr]
    if hostname:
        arguments += ["--hostname", hostname]
    os.execv(sys.executable, [sys.executable, "-m", "agent", *arguments])  # noqa: S606  # becomes the agent
