"""The programs of shortcuts in the kernel: loaded, proved, and which devices and blocks have them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from agent.dataplane import bpf, namespace, netlink, shortcut
from agent.dataplane.channel import Channel
from agent.dataplane.names import LOOPBACK
from agent.dataplane.objects import Object, Shortcut, Tap
from agent.dataplane.shortcut import Way


def load(home: int) -> dict[Way, int]:
    """Return descriptors of the programs, which devices of this kernel were proved to take.

    Args:
        home: the calling thread's network namespace.

    Raises:
        HostError: the kernel cannot do it.
    """
    loaded: dict[Way, int] = {}
    try:
        for way in shortcut.BLOCKS:
            loaded[way] = bpf.load(f"overswarm_{way}", shortcut.program(way), shortcut.TERMS)
        with namespace.scratch(home), contextlib.closing(Channel()) as channel:
            channel.check([netlink.tap(LOOPBACK, 1, add=True)])
            channel.check([netlink.classifier(1, "try", fd) for fd in loaded.values()])
    except BaseException:
        close(loaded)
        raise
    return loaded


def close(loaded: Mapping[Way, int]) -> None:
    """Let go of programs; where they are in use they stay."""
    for fd in loaded.values():
        os.close(fd)


def observed(channel: Channel, known: Mapping[int, str]) -> Iterator[Object]:
    """Yield the taps of known devices (index to name), and the programs of their blocks."""
    taps = [netlink.parse_tap(body) for body in channel.dump(netlink.all_taps())]
    taps = [(index, block) for index, block in taps if block and index in known]
    for index, block in taps:
        yield Tap(ifname=known[index], block=block)
    for way, block in shortcut.BLOCKS.items():
        devices = frozenset(known[index] for index, each in taps if each == block)
        if not devices:
            continue  # to ask for a block that is not there is an error
        for body in channel.dump(netlink.all_classifiers(block)):
            name = netlink.parse_classifier(body)
            if name:
                on = devices if way == "in" else frozenset()
                yield Shortcut(way=way, name=name, devices=on)
