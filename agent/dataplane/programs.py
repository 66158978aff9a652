"""The program of shortcuts in the kernel: loaded, proved, and which devices have it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from agent.dataplane import bpf, namespace, netlink, shortcut
from agent.dataplane.channel import Channel
from agent.dataplane.names import LOOPBACK
from agent.dataplane.objects import Object, Shortcut, Tap


def load(home: int) -> int:
    """Return a descriptor of the program, which devices of this kernel were proved to take.

    Args:
        home: the calling thread's network namespace.

    Raises:
        HostError: the kernel cannot do it.
    """
    program = bpf.load("overswarm_in", shortcut.program(), shortcut.TERMS)
    try:
        with namespace.scratch(home), contextlib.closing(Channel()) as channel:
            channel.check([netlink.tap(LOOPBACK, shortcut.BLOCK, add=True)])
            channel.check([netlink.classifier(shortcut.BLOCK, "try", program)])
    except BaseException:
        os.close(program)
        raise
    return program


def observed(channel: Channel, known: Mapping[int, str]) -> Iterator[Object]:
    """Yield the taps of known devices (index to name), and the program that they have."""
    rows = [netlink.parse_tap(body) for body in channel.dump(netlink.all_taps())]
    taps = {known[index]: block for index, block in rows if block and index in known}
    for device, block in taps.items():
        yield Tap(ifname=device, block=block)
    devices = frozenset(device for device, block in taps.items() if block == shortcut.BLOCK)
    if not devices:
        return  # to ask for a block that is not there is an error
    for body in channel.dump(netlink.all_classifiers(shortcut.BLOCK)):
        name = netlink.parse_classifier(body)
        if name:
            yield Shortcut(name=name, devices=devices)
