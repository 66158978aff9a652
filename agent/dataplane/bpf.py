"""Programs for the kernel's BPF machine: a small assembler, and the system call that loads them.

Source:
    Linux ``include/uapi/linux/bpf.h``, ``Documentation/bpf/standardization/instruction-set.rst``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

from swarm.errors import HostError, InvariantError

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)
U32, U16, U8, U64 = 0x00, 0x08, 0x10, 0x18
"""Sizes of loads and stores."""
EQ, NE, SET, GT = 0x10, 0x50, 0x40, 0x20
"""Conditions of jumps; SET: any common bit."""
ADD, AND, MOV = 0x00, 0x50, 0xB0
"""Operations."""

_LDX, _ST, _STX, _JMP, _ALU64 = 0x61, 0x62, 0x63, 0x05, 0x07
_CALL, _EXIT, _REGISTER = 0x85, 0x95, 0x08
_INSTRUCTION = struct.Struct("=BBhi")
_SYSCALLS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_PROG_LOAD, _SCHED_CLS = 5, 3
_LOG = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class Assembler:
    """Collects instructions; jumps name a label that may come later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}

    def load(self, size: int, to: int, base: int, offset: int) -> None:
        """``to`` = what is at ``base`` + ``offset``."""
        self._code.append((_LDX | size, base << 4 | to, offset, 0))

    def store(self, size: int, base: int, offset: int, source: int) -> None:
        """What is at ``base`` + ``offset`` = register ``source``."""
        self._code.append((_STX | size, source << 4 | base, offset, 0))

    def zero(self, size: int, base: int, offset: int) -> None:
        """What is at ``base`` + ``offset`` = 0."""
        self._code.append((_ST | size, base, offset, 0))

    def put(self, operation: int, register: int, value: int) -> None:
        """``register`` = ``register`` operation ``value``."""
        self._code.append((_ALU64 | operation, register, 0, value))

    def join(self, operation: int, register: int, other: int) -> None:
        """``register`` = ``register`` operation register ``other``."""
        self._code.append((_ALU64 | operation | _REGISTER, other << 4 | register, 0, 0))

    def jump(self, condition: int, register: int, value: int, label: str) -> None:
        """Go on at ``label`` if ``register`` compares so with ``value``."""
        self._jumps[len(self._code)] = label
        self._code.append((_JMP | condition, register, 0, value))

    def compare(self, condition: int, register: int, other: int, label: str) -> None:
        """Go on at ``label`` if ``register`` compares so with register ``other``."""
        self._jumps[len(self._code)] = label
        self._code.append((_JMP | condition | _REGISTER, other << 4 | register, 0, 0))

    def go(self, label: str) -> None:
        """Go on at ``label``."""
        self._jumps[len(self._code)] = label
        self._code.append((_JMP, 0, 0, 0))

    def label(self, name: str) -> None:
        """The next instruction is ``name``."""
        self._labels[name] = len(self._code)

    def call(self, helper: int) -> None:
        """Call a helper: arguments in R1 to R5, which are lost; the result in R0."""
        self._code.append((_CALL, 0, 0, helper))

    def exit(self) -> None:
        """Return R0."""
        self._code.append((_EXIT, 0, 0, 0))

    def code(self) -> bytes:
        """Return the instructions."""
        for name in self._jumps.values():
            if name not in self._labels:
                raise InvariantError(f"a jump to {name}, which is nowhere")
        return b"".join(
            _INSTRUCTION.pack(
                kind,
                registers,
                self._labels[self._jumps[i]] - i - 1 if i in self._jumps else offset,
                value,
            )
            for i, (kind, registers, offset, value) in enumerate(self._code)
        )


def load(name: str, code: bytes, terms: str) -> int:
    """Load a classifier of packets; returns a descriptor, and the program ends with its last user.

    Args:
        name: at most 15 letters, shown by the kernel.
        code: the instructions.
        terms: its licence; some helpers are only for GPL compatible programs.

    Raises:
        HostError: the kernel has no such machine, or will not have the program.
    """
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        raise HostError(f"the number of bpf() on {platform.machine()} is not known")
    text, grant = ctypes.create_string_buffer(code), ctypes.create_string_buffer(terms.encode())
    for log in (None, ctypes.create_string_buffer(_LOG)):
        request = struct.pack(
            "=IIQQIIQII16sII",
            _SCHED_CLS,
            len(code) // _INSTRUCTION.size,
            ctypes.addressof(text),
            ctypes.addressof(grant),
            *((0, 0, 0) if log is None else (1, _LOG, ctypes.addressof(log))),
            0,
            0,
            name.encode(),
            0,
            0,
        )
        fd: int = _libc.syscall(number, _PROG_LOAD, request, len(request))
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
    last = "" if log is None else log.value.decode(errors="replace").strip()[-300:]
    raise HostError(f"the kernel refuses program {name}: {os.strerror(error)} {last}".strip())
