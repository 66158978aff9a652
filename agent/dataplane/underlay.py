"""The daemon's own namespace: the device under the tunnel, and where VXLAN devices are born.

These requests are rare and rich, so pyroute2 encodes them; the attach path does not pass here.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.dataplane.channel import KernelError
from agent.dataplane.model import IPAddress
from agent.dataplane.names import DEVICE_GROUP
from agent.dataplane.objects import Vxlan
from swarm.errors import ConflictError, HostError

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
NO_VXLAN = "this kernel has no VXLAN: run 'modprobe vxlan', or use a kernel built with CONFIG_VXLAN"


class Underlay:
    """One netlink socket in the daemon's namespace; made and used by the worker thread."""

    def __init__(self) -> None:
        self._route: Any = IPRoute()

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def mtu(self, vtep: IPAddress) -> int | None:
        """Return the MTU of the device that holds ``vtep``, None when no device does.

        Raises:
            KernelError: the kernel refused.
        """
        device = self.device(vtep)
        return None if device is None else device[2]

    def device(self, vtep: IPAddress) -> tuple[int, str, int] | None:
        """Return index, name and MTU of the device that holds ``vtep``, None when none does.

        Raises:
            KernelError: the kernel refused.
        """
        try:
            return self._device(vtep)
        except NetlinkError as error:
            raise KernelError(f"cannot look at the underlay: {error}", error.code) from error

    def _device(self, vtep: IPAddress) -> tuple[int, str, int] | None:
        for row in self._route.get_addr(family=_FAMILY[vtep.version]):
            if str(vtep) in {row.get_attr("IFA_LOCAL"), row.get_attr("IFA_ADDRESS")}:
                try:
                    (link,) = self._route.get_links(row["index"])
                except NetlinkError as error:
                    if error.code == errno.ENODEV:  # it went since the addresses were listed
                        return None
                    raise
                name, mtu = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU")
                return int(link["index"]), str(name), int(mtu)
        return None

    def make_vxlan(self, vxlan: Vxlan, netns: int, *, whole: bool = False) -> None:
        """Make a VXLAN device whose UDP socket is here and whose other side is in ``netns``.

        One message does both, so there is never a half-made device in this namespace.

        Args:
            vxlan: what it is to be.
            netns: descriptor of where it is to go.
            whole: whether a packet that does not fit on the way is lost and not cut.

        Raises:
            ConflictError: VNI and port are taken in this namespace.
            HostError: the kernel has no VXLAN.
            KernelError: it refused for another reason.
        """
        local = "vxlan_local" if vxlan.local.version == 4 else "vxlan_local6"
        try:
            self._route.link(
                "add",
                ifname=vxlan.name,
                kind="vxlan",
                address=vxlan.mac,
                mtu=vxlan.mtu,
                group=DEVICE_GROUP,
                net_ns_fd=netns,
                vxlan_id=vxlan.vni,
                vxlan_port=vxlan.port,
                vxlan_learning=0,
                vxlan_port_range={"low": vxlan.sources[0], "high": vxlan.sources[1]},
                **({"vxlan_df": 1} if whole else {}),
                **{local: str(vxlan.local)},
            )
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                raise ConflictError(
                    f"VNI {vxlan.vni} on port {vxlan.port} is in use by another device of this host"
                ) from error
            if error.code == errno.EOPNOTSUPP:
                raise HostError(NO_VXLAN) from error
            raise KernelError(f"cannot make {vxlan.name}: {error}", error.code) from error
