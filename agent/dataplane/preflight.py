"""What the host must have, tried and not guessed; and the limits that big nodes run into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from agent.dataplane import ipsec, names, namespace, netlink, programs, ruleset
from agent.dataplane.channel import Channel
from agent.dataplane.model import Finding, Settings
from agent.dataplane.nft import Nft
from agent.dataplane.objects import Vxlan
from agent.dataplane.underlay import Underlay
from swarm.errors import HostError

_PROC = Path("/proc/sys")

LIMITS = (
    # Neighbour tables are shared by all namespaces of the host; values as Docker sets them.
    ("net/ipv4/neigh/default/gc_thresh1", 8192),
    ("net/ipv4/neigh/default/gc_thresh2", 49152),
    ("net/ipv4/neigh/default/gc_thresh3", 65536),
    ("net/ipv6/neigh/default/gc_thresh1", 8192),
    ("net/ipv6/neigh/default/gc_thresh2", 49152),
    ("net/ipv6/neigh/default/gc_thresh3", 65536),
    # A burst to many veths queues here; at the default of 1000 the rest is dropped.
    ("net/core/netdev_max_backlog", 4096),
    ("fs/inotify/max_user_instances", 8192),
    # A container is some processes, each with threads; the default of small hosts is 32768.
    ("kernel/pid_max", 131072),
    # Ways out and services track connections, of all namespaces together where the kernel counts so.
    ("net/netfilter/nf_conntrack_max", 262144),
)


def run(settings: Settings) -> tuple[Finding, ...]:
    """Check the host; worker thread only.

    Returns:
        One finding per feature and limit.

    Raises:
        HostError: something without which no network can be carried is missing.
    """
    return (*_features(settings), *_limits(raise_them=settings.raise_limits))


def _features(settings: Settings) -> Iterator[Finding]:
    if os.geteuid() != 0:
        raise HostError("the data plane needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")
    home = namespace.open_own()
    try:
        try:
            with namespace.scratch(home) as fd:
                _try_router(fd, settings)
        except PermissionError as error:
            raise HostError(
                "the data plane needs CAP_SYS_ADMIN and CAP_NET_ADMIN; this process lacks them"
            ) from error
    finally:
        os.close(home)
    yield Finding(name="vxlan", level="ok", text="the kernel makes VXLAN devices")
    yield Finding(name="nftables", level="ok", text="the kernel takes the router's nftables rules")
    underlay = Underlay()
    try:
        mtu = underlay.mtu(settings.vtep)
    finally:
        underlay.close()
    try:
        home = namespace.open_own()
        try:
            ipsec.prove(settings, home)
        finally:
            os.close(home)
    except HostError as error:
        yield Finding(name="esp", level="warning", text=f"encrypted networks are refused: {error}")
    else:
        yield Finding(name="esp", level="ok", text="the kernel can carry encrypted networks")
    yield _shortcuts()
    if not _in_first_mount_namespace():
        yield Finding(
            name="mounts",
            level="warning",
            text="this process has a mount namespace of its own, and routers are kept by mounts: "
            "a restart interrupts traffic. Start it without PrivateMounts (systemd) or "
            "'ip netns exec' (nsenter --net does not do that)",
        )
    if mtu is None:
        yield Finding(
            name="vtep",
            level="warning",
            text=f"no interface holds the tunnel address {settings.vtep}: give --data-path-addr an "
            "address of this host",
        )
    else:
        yield Finding(name="vtep", level="ok", text=f"the underlay's MTU is {mtu}")


def _shortcuts() -> Finding:
    home = namespace.open_own()
    try:
        os.close(programs.load(home))
    except (HostError, OSError) as error:
        text = f"packets take the long way through routers: {error}"
        return Finding(name="shortcuts", level="warning", text=text)
    finally:
        os.close(home)
    text = "plain packets pass routers without their IP stack"
    return Finding(name="shortcuts", level="ok", text=text)


def _try_router(fd: int, settings: Settings) -> None:
    """Load a router's devices and rules into a namespace that ends right after."""
    underlay = Underlay()
    try:
        vxlan = Vxlan(
            name=names.vxlan_name(1),
            vni=1,
            port=settings.port,
            local=IPv4Address("127.0.0.1"),
            mac=names.vxlan_mac(settings.vtep, 1),
            mtu=1450,
            sources=names.PLAIN_SOURCES,
        )
        underlay.make_vxlan(vxlan, fd)
    finally:
        underlay.close()
    channel = Channel()
    try:
        channel.check([netlink.set_link(channel.index(vxlan.name), up=True)])
    finally:
        channel.close()
    nft = Nft()
    try:
        nft.run(ruleset.build(ruleset.wanted([vxlan.name])))
    except HostError as error:
        raise HostError(
            f"the kernel refuses the router's rules ({error}); it needs CONFIG_NF_TABLES_NETDEV, "
            "CONFIG_NF_TABLES_INET and CONFIG_NFT_FIB_INET"
        ) from error
    finally:
        nft.close()


def _in_first_mount_namespace() -> bool:
    try:
        return Path("/proc/self/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink()
    except OSError:
        return True  # not to be seen: nothing to say


def _limits(*, raise_them: bool) -> Iterator[Finding]:
    for path, least in LIMITS:
        name = path.replace("/", ".")
        file = _PROC / path
        try:
            now = int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            # A child namespace does not show limits of the whole host.
            continue
        if now >= least:
            yield Finding(name=name, level="ok", text=f"{name} is {now}")
            continue
        help_text = f"{name} is {now}, many containers need {least}: sysctl -w {name}={least}"
        if raise_them:
            try:
                file.write_text(str(least), encoding="ascii")
            except OSError:
                yield Finding(name=name, level="warning", text=help_text)
            else:
                yield Finding(name=name, level="raised", text=f"{name} was {now}, is {least} now")
        else:
            yield Finding(name=name, level="warning", text=help_text)
