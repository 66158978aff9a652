"""The program that takes packets of a plain network past the IP stack of the router that they arrive at. Pure.

It decides nothing: the kernel's own routes and neighbours do (``bpf_fib_lookup``), as they do in the
stack, and what is not a simple packet between two known addresses goes the usual way. Asked first is the
way back: a packet whose source is not behind the device it came from is not for us, so all that
the rules drop, they still get to see.

A frame at a VXLAN device that is addressed to a container's MAC goes on inside the container, as
one that just came from the wire. The router of the node that sent it has lowered its TTL.

Left alone are fragments, IP options, link-local and group addresses, TTL 1, packets that are too large, and
TCP's first packets, for their largest segment is clamped. It must not be where connections
are translated: answers have to pass connection tracking.

There is none for what containers send: a port takes part in a filter block only after the kernel has waited for
all processors, at each attach, for 0.1 us a packet.
"""

from __future__ import annotations

import functools
import hashlib
import socket
from typing import Final

from agent.dataplane.bpf import (
    ADD,
    AND,
    EQ,
    FP,
    GT,
    MOV,
    NE,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    SET,
    U8,
    U16,
    U32,
    U64,
    Assembler,
)

BLOCK: Final = 2
"""Filter block of a router's VXLAN devices: the program is put and taken for all of them at once."""

TERMS: Final = "GPL"
"""What the kernel asks of a program that looks at its routes."""

_LOAD_BYTES, _FIB_LOOKUP, _CHANGE_TYPE, _REDIRECT_PEER = 26, 69, 32, 155
_UNSPEC = -1  # TC_ACT_UNSPEC: no opinion

# struct __sk_buff
_PROTOCOL, _VLAN, _IFINDEX = 16, 20, 40

# The stack: the first bytes of the packet, a byte of TCP, struct bpf_fib_lookup.
_IP = -72
_FRAME = _IP - 14
_FLAGS = -24
_ASK = -152
_ASK_BYTES = 64
_FAMILY, _LENGTH, _DEVICE, _METRIC = _ASK, _ASK + 6, _ASK + 8, _ASK + 12
_FROM, _TO, _VLANS, _DMAC = _ASK + 16, _ASK + 32, _ASK + 48, _ASK + 58


@functools.cache
def program() -> bytes:
    """Return the instructions."""
    code = Assembler()
    code.join(MOV, R6, R1)
    code.load(U32, R7, R6, _IFINDEX)
    code.load(U32, R0, R6, _VLAN)
    code.jump(NE, R0, 0, "stack")
    code.load(U32, R0, R6, _PROTOCOL)
    code.jump(EQ, R0, socket.htons(0x0800), "v4")
    code.jump(EQ, R0, socket.htons(0x86DD), "v6")
    code.label("stack")
    code.put(MOV, R0, _UNSPEC)
    code.exit()
    code.label("v4")
    _version4(code)
    code.label("v6")
    _version6(code)
    return code.code()


@functools.cache
def name() -> str:
    """Return what the kernel shows such a filter as: another program has another name."""
    return f"overswarm-{hashlib.sha256(program()).hexdigest()[:12]}"


def _version4(code: Assembler) -> None:
    _read(code, 0, _FRAME, 34)
    code.load(U8, R0, FP, _IP)
    code.jump(NE, R0, 0x45, "stack")
    code.load(U16, R0, FP, _IP + 6)
    code.jump(SET, R0, socket.htons(0x3FFF), "stack")
    code.load(U8, R8, FP, _IP + 9)
    _no_first(code, R8, 34, "plain4")
    code.label("plain4")
    _alive(code, _IP + 8)
    _clear(code, socket.AF_INET)
    _ask(code, U32, _IP + 16, _IP + 12)
    _pass(code)


def _version6(code: Assembler) -> None:
    _read(code, 0, _FRAME, 54)
    for address in (8, 24):
        code.load(U8, R0, FP, _IP + address)
        code.put(AND, R0, 0xFE)
        code.jump(EQ, R0, 0xFE, "stack")  # fe80::/10, ff00::/8 and what is unused beside them
    code.load(U8, R8, FP, _IP + 6)
    _no_first(code, R8, 54, "other6")
    code.go("plain6")
    code.label("other6")
    code.jump(EQ, R8, socket.IPPROTO_UDP, "plain6")
    code.jump(NE, R8, socket.IPPROTO_ICMPV6, "stack")  # all that follows other headers
    code.label("plain6")
    _alive(code, _IP + 7)
    _clear(code, socket.AF_INET6)
    _ask(code, U64, _IP + 24, _IP + 8)
    _pass(code)


def _read(code: Assembler, offset: int, to: int, count: int) -> None:
    code.join(MOV, R1, R6)
    code.put(MOV, R2, offset)
    code.join(MOV, R3, FP)
    code.put(ADD, R3, to)
    code.put(MOV, R4, count)
    code.call(_LOAD_BYTES)
    code.jump(NE, R0, 0, "stack")


def _no_first(code: Assembler, protocol: int, offset: int, other: str) -> None:
    """Leave SYN to the rules; what is no TCP goes on at ``other``."""
    code.jump(NE, protocol, socket.IPPROTO_TCP, other)
    _read(code, offset + 13, _FLAGS, 1)
    code.load(U8, R0, FP, _FLAGS)
    code.jump(SET, R0, 0x02, "stack")


def _alive(code: Assembler, ttl: int) -> None:
    """Leave what must not go further to the router, which says so."""
    code.load(U8, R0, FP, ttl)
    code.jump(GT, R0, 1, f"alive{ttl}")
    code.go("stack")
    code.label(f"alive{ttl}")


def _clear(code: Assembler, family: int) -> None:
    for offset in range(_ASK, _ASK + _ASK_BYTES, 8):
        code.zero(U64, FP, offset)
    code.put(MOV, R0, family)
    code.store(U8, FP, _FAMILY, R0)


def _ask(code: Assembler, size: int, destination: int, source: int) -> None:
    """Ask for the way back, which must be the device it came from, then for the way on: to R8."""
    words = ((0, size),) if size == U32 else ((0, size), (8, size))
    for there, here in ((source, destination), (destination, source)):
        code.store(U32, FP, _DEVICE, R7)
        for offset, each in words:
            code.load(each, R0, FP, here + offset)
            code.store(each, FP, _FROM + offset, R0)
            code.load(each, R0, FP, there + offset)
            code.store(each, FP, _TO + offset, R0)
        code.join(MOV, R1, R6)
        code.join(MOV, R2, FP)
        code.put(ADD, R2, _ASK)
        code.put(MOV, R3, _ASK_BYTES)
        code.put(MOV, R4, 0)
        code.call(_FIB_LOOKUP)
        code.jump(NE, R0, 0, "stack")
        code.load(U32, R8, FP, _DEVICE)
        if there == source:
            code.compare(NE, R8, R7, "stack")
            # The answer is in the question's place; zero asks for no length, no class, no VLAN.
            code.zero(U16, FP, _LENGTH)
            code.zero(U32, FP, _METRIC)
            code.zero(U32, FP, _VLANS)
    code.compare(EQ, R8, R7, "stack")


def _pass(code: Assembler) -> None:
    for half in (0, 2, 4):
        code.load(U16, R0, FP, _DMAC + half)
        code.load(U16, R1, FP, _FRAME + half)
        code.compare(NE, R0, R1, "stack")
    code.join(MOV, R1, R6)
    code.put(MOV, R2, 0)  # PACKET_HOST: until here it was for another's MAC
    code.call(_CHANGE_TYPE)
    code.join(MOV, R1, R8)
    code.put(MOV, R2, 0)
    code.call(_REDIRECT_PEER)
    code.exit()
