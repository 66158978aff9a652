"""Make and remove the namespaces and links of a lab.

All work that must happen inside a namespace is done by a short-lived thread that enters it, so the
calling thread never leaves home.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute

from swarm.errors import HostError
from swarm.kernel import libc
from swarm.kernel.netns import in_netns, loopback_up, open_netns
from swarm.lab.state import BRIDGE, SUBNET, SUBNET6, Host, LabState

T = TypeVar("T")


def require_root() -> None:
    """Refuse to go on without the privileges that namespaces need.

    Raises:
        HostError: the caller is not root.
    """
    if os.geteuid() != 0:
        raise HostError("the lab makes network namespaces and needs root: run it with sudo")


def make_underlay(lab: LabState) -> None:
    """Make the namespace with the bridge that every host is plugged into."""
    _persist(lab.underlay_netns, libc.CLONE_NEWNET)
    inside(lab.underlay_netns, lambda: _build_bridge(lab.mtu))


def make_host(lab: LabState, host: Host) -> None:
    """Make a host's namespaces and plug its ``eth0`` into the bridge."""
    netns = lab.netns(host.name)
    lab.uts(host.name).parent.mkdir(parents=True, exist_ok=True)
    lab.log(host.name).parent.mkdir(parents=True, exist_ok=True)
    _persist(netns, libc.CLONE_NEWNET)
    _persist(lab.uts(host.name), libc.CLONE_NEWUTS, lambda: socket.sethostname(host.name))
    target = open_netns(netns)
    try:
        inside(lab.underlay_netns, lambda: _plug(host.name, target, lab.mtu))
    finally:
        os.close(target)
    inside(netns, lambda: _configure_host(host))


def remove_host(lab: LabState, name: str) -> None:
    """Remove a host's namespaces and files; its processes must be gone already."""
    _release(lab.netns(name))
    unmount_below(lab.run_root / name)
    unmount_below(lab.state_root / name)
    _release(lab.uts(name))
    shutil.rmtree(lab.run_root / name, ignore_errors=True)
    shutil.rmtree(lab.state_root / name, ignore_errors=True)


def remove_underlay(lab: LabState) -> None:
    """Remove the bridge's namespace and what is left of the lab's directories."""
    _release(lab.underlay_netns)
    for root in (lab.run_root, lab.state_root):
        unmount_below(root)
        shutil.rmtree(root, ignore_errors=True)
        with contextlib.suppress(OSError):
            (root.parent / f".{lab.name}.lock").unlink(missing_ok=True)
            root.parent.rmdir()
    with contextlib.suppress(OSError):
        lab.underlay_netns.parent.rmdir()


def inside(netns: Path, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread that has entered ``netns`` and return its result."""

    def entered() -> T:
        with in_netns(netns):
            return work()

    return _in_thread(entered)


def unmount_below(root: Path) -> None:
    """Detach every mount below ``root``, deepest first."""
    prefix = f"{root}/"
    points = []
    with Path("/proc/self/mountinfo").open() as table:
        for line in table:
            point = line.split()[4].encode().decode("unicode_escape")
            if point.startswith(prefix):
                points.append(point)
    for point in sorted(points, key=len, reverse=True):
        with contextlib.suppress(OSError):
            libc.unmount(point, flags=libc.MNT_DETACH)


def _in_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def _persist(path: Path, kind: int, setup: Callable[[], None] | None = None) -> None:
    """Make a namespace of ``kind`` and keep it alive by a bind mount at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)
    link = "net" if kind == libc.CLONE_NEWNET else "uts"

    def create() -> None:
        libc.unshare(kind)
        if setup is not None:
            setup()
        libc.mount(f"/proc/thread-self/ns/{link}", str(path), flags=libc.MS_BIND)

    _in_thread(create)


def _release(path: Path) -> None:
    with contextlib.suppress(OSError):
        libc.unmount(str(path), flags=libc.MNT_DETACH)
    path.unlink(missing_ok=True)


def _index(netlink: Any, name: str) -> int:
    found: list[int] = netlink.link_lookup(ifname=name)
    if not found:
        raise HostError(f"link {name} vanished from the lab: is somebody else changing it?")
    return found[0]


def _build_bridge(mtu: int) -> None:
    loopback_up()
    _no_address_detection()
    with IPRoute() as netlink:
        netlink.link("add", ifname=BRIDGE, kind="bridge", br_mcast_snooping=0)
        bridge = _index(netlink, BRIDGE)
        netlink.addr("add", index=bridge, address=str(SUBNET[254]), prefixlen=SUBNET.prefixlen)
        netlink.addr("add", index=bridge, address=str(SUBNET6[254]), prefixlen=SUBNET6.prefixlen)
        netlink.link("set", index=bridge, mtu=mtu, state="up")


def _plug(name: str, target: int, mtu: int) -> None:
    port = port_name(name)
    with IPRoute() as netlink:
        netlink.link(
            "add",
            ifname=port,
            kind="veth",
            mtu=mtu,
            peer={"ifname": "eth0", "net_ns_fd": target, "mtu": mtu},
        )
        index = _index(netlink, port)
        netlink.link("set", index=index, master=_index(netlink, BRIDGE), state="up")


def _configure_host(host: Host) -> None:
    loopback_up()
    _no_address_detection()
    with IPRoute() as netlink:
        index = _index(netlink, "eth0")
        netlink.addr("add", index=index, address=host.address, prefixlen=SUBNET.prefixlen)
        netlink.addr("add", index=index, address=host.address6, prefixlen=SUBNET6.prefixlen)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst="default", gateway=str(SUBNET[254]))


def _no_address_detection() -> None:
    """Make IPv6 addresses usable at once: nobody else can be on a link that was just made."""
    for scope in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")


def port_name(host: str) -> str:
    """Return the name of a host's port on the bridge."""
    return f"h-{host}"
