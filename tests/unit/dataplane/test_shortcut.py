"""The programs past the router's IP stack, and when they are wanted."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest

from agent.dataplane import shortcut
from agent.dataplane.bpf import EQ, MOV, R0, Assembler
from agent.dataplane.engine import Engine
from agent.dataplane.model import Settings
from agent.dataplane.objects import Drop, Put, Route, Shortcut, Tap
from agent.dataplane.planner import NetworkState, plan
from swarm.errors import InvariantError

INSTRUCTION = struct.Struct("=BBhi")
HELPERS = {26, 69, 32, 155}


def test_every_jump_lands_ahead_inside_the_program_or_at_the_way_to_the_stack() -> None:
    """No loops; each end is an exit; only the helpers that are meant."""
    code = list(INSTRUCTION.iter_unpack(shortcut.program()))
    back = set()
    for i, (kind, _, offset, _) in enumerate(code):
        if kind & 0x07 == 0x05 and kind not in {0x85, 0x95}:
            assert 0 <= i + 1 + offset < len(code)
            if offset < 0:
                back.add(i + 1 + offset)
    assert len(back) == 1, "the way to the stack"
    (stack,) = back
    assert code[stack][3] == -1
    assert code[stack + 1][0] == 0x95
    assert code[-1][0] == 0x95
    assert {value for kind, _, _, value in code if kind == 0x85} == HELPERS


def test_a_jump_to_nowhere_is_refused() -> None:
    """An error of the author, found before the kernel is asked."""
    code = Assembler()
    code.jump(EQ, R0, 0, "end")
    with pytest.raises(InvariantError, match="end"):
        code.code()
    code.put(MOV, R0, 1)
    code.label("end")
    code.exit()
    assert INSTRUCTION.unpack_from(code.code())[2] == 1


def test_programs_are_wanted_only_without_service_addresses(
    kernel: Any, settings: Settings, make: Any
) -> None:
    """They go before the first one is answered for, and come after the last is not any more."""
    engine = Engine(settings, kernel)
    net = make.network(1)
    engine.put_network(net)
    held = kernel.held[net.id[:12]]
    vip = ipaddress.ip_address("10.0.1.200")

    def programs() -> bool:
        return any(isinstance(item, Shortcut) for item in held.values())

    assert programs()
    engine.change_vips(net.id, (vip,), ())
    assert not programs()
    engine.change_vips(net.id, (), (vip,))
    assert programs()
    engine.set_vips(net.id, [vip])
    assert not programs()
    engine.put_network(make.network(1, mtu=1400))
    assert not programs()
    state = NetworkState(network=net, settings=settings, shortcuts=True)
    way = Route(target=ipaddress.ip_network("10.0.1.200/32"), kind="local")
    off = {way.key: way}
    on = {item.key: item for item in state.shortcut_objects(())}
    ops = plan(off, on)
    assert [type(op) for op in ops] == [Drop, Put]
    assert [type(op) for op in plan(on, off)] == [Drop, Put]


def test_a_kernel_without_them_is_asked_for_none(
    kernel: Any, settings: Settings, make: Any
) -> None:
    """Neither programs nor taps."""
    kernel.quick = False
    engine = Engine(settings, kernel)
    engine.put_network(make.network(1))
    engine.plug(make.endpoint(1, 2))
    items = kernel.held[make.network(1).id[:12]].values()
    assert not [item for item in items if isinstance(item, Shortcut | Tap)]


def test_programs_come_back_with_the_devices_they_went_with(
    kernel: Any, settings: Settings, make: Any
) -> None:
    """A tunnel device that is made anew takes its block along."""
    engine = Engine(settings, kernel)
    net = make.network(1, extra=True)
    engine.put_network(net)
    held = kernel.held[net.id[:12]]
    assert plan(dict(held), held) == ()
    for name in [key[1] for key in held if key[0] == "link"]:
        kernel._drop_link(held, held["link", name])
    assert ("shortcut",) not in held
    assert engine.check_router(net.id).failures == ()
    assert ("shortcut",) in held
    assert engine.check_router(net.id).drift == 0
