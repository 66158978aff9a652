"""Addresses as text, listeners, and private directories."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import HostError, InvalidArgumentError
from swarm.identity.sockets import (
    accept,
    begin,
    connect_unix,
    join_address,
    listen_tcp,
    listen_unix,
    private_directory,
    split_target,
)
from tests.unit.identity.conftest import until


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("192.0.2.1:2377", ("192.0.2.1", 2377)),
        ("[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("[fe80::1%eth0]:2377", ("fe80::1%eth0", 2377)),
        ("manager.example:65535", ("manager.example", 65535)),
    ],
)
def test_targets_are_taken_apart(text: str, parts: tuple[str, int]) -> None:
    """Names, IPv4, and IPv6 in brackets."""
    assert split_target(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":2377",
        "host:0",
        "host:65536",
        "host:+1",
        "host:\u0663",
        "2001:db8::1",
        "[]:1",
    ],
)
def test_other_targets_are_refused(text: str) -> None:
    """Each with a sentence."""
    with pytest.raises(InvalidArgumentError):
        split_target(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_addresses_survive_their_text(address: object, port: int) -> None:
    """What is written can be taken apart again (IPv4 in IPv6 becomes the IPv4 it is)."""
    host, back = split_target(join_address(str(address), port))
    assert back == port
    assert host == str(address) or host == str(getattr(address, "ipv4_mapped", None))


def test_a_taken_port_is_named() -> None:
    """The error names the address, the port and the reason."""
    (first,) = listen_tcp("127.0.0.1", 0)
    with first:
        port = first.getsockname()[1]
        with pytest.raises(HostError, match=f"127.0.0.1:{port}: address already in use"):
            listen_tcp("127.0.0.1", port)
        with pytest.raises(HostError, match=f"0.0.0.0:{port}: address already in use"):
            listen_tcp("", port)


def test_a_taken_ipv6_port_leaves_nothing_open() -> None:
    """When only the IPv6 half is taken, the IPv4 half is given back."""
    (taken,) = listen_tcp("::", 0)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"\[::\]:{port}: address already in use"):
            listen_tcp("", port)
        (free,) = listen_tcp("0.0.0.0", port)
        free.close()


def test_an_address_of_another_machine_is_refused() -> None:
    """With the reason the kernel gives."""
    with pytest.raises(HostError, match=r"192\.0\.2\.77:0: cannot assign requested address"):
        listen_tcp("192.0.2.77", 0)


def test_both_families_share_a_port() -> None:
    """No address means 0.0.0.0 and [::], on one port."""
    both = listen_tcp("", 0)
    try:
        assert [s.family for s in both] == [socket.AF_INET, socket.AF_INET6]
        assert len({s.getsockname()[1] for s in both}) == 1
    finally:
        for listener in both:
            listener.close()


def test_a_long_socket_path_is_explained(run_dir: Path) -> None:
    """The kernel's limit is told before bind fails with something worse."""
    with pytest.raises(HostError, match="allows 107"):
        listen_unix(run_dir / ("x" * 108))


def test_private_directories(run_dir: Path) -> None:
    """Made 0700, tightened when open, refused when it is no directory."""
    made = private_directory(run_dir / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    assert private_directory(made).stat().st_mode & 0o777 == 0o700
    (run_dir / "file").touch()
    with pytest.raises(HostError, match="cannot prepare"):
        private_directory(run_dir / "file")


async def test_connect_waits_for_a_full_backlog(run_dir: Path) -> None:
    """EAGAIN of a unix connect is not taken for a connection."""
    path = run_dir / "s.sock"
    with listen_unix(path) as listener:
        listener.listen(0)
        waiting = []
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                if waiting[-1].connect_ex(str(path)):
                    break
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("swarm.identity.sockets._CONNECT_TRIES", 3)
                with pytest.raises(BlockingIOError):
                    await connect_unix(path)
            listener.accept()[0].close()
            (await connect_unix(path)).close()
        finally:
            for sock in waiting:
                sock.close()


async def test_connect_to_nobody(run_dir: Path) -> None:
    """A missing server is an OSError at once."""
    with pytest.raises(FileNotFoundError):
        await connect_unix(run_dir / "none.sock")


async def test_accept_hands_over_each_connection(run_dir: Path) -> None:
    """All of them, more than one batch, and nothing is left open after the end."""
    taken: list[socket.socket] = []
    clients: list[socket.socket] = []
    with listen_unix(run_dir / "s.sock") as listener:
        task = asyncio.create_task(
            accept(listener, lambda sock, _: taken.append(sock), lambda error: None)
        )
        clients += [await connect_unix(run_dir / "s.sock") for _ in range(100)]
        await until(lambda: len(taken) == 100)
        task.cancel()
        await asyncio.wait({task})
        clients.append(await connect_unix(run_dir / "s.sock"))
        await asyncio.sleep(0)
        assert len(taken) == 100
    for sock in taken + clients:
        sock.close()


class Exhausted:
    """A listener on a machine whose descriptors ran out, for a while."""

    def __init__(self, listener: socket.socket, times: int) -> None:
        self.listener = listener
        self.times = times

    def fileno(self) -> int:
        """Be polled like the real one."""
        return self.listener.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        """Fail, then accept."""
        if self.times:
            self.times -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return self.listener.accept()


async def test_accept_pauses_when_descriptors_run_out(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trouble is told once per pause, and the connection is served after."""
    monkeypatch.setattr("swarm.identity.sockets._ACCEPT_PAUSE", 0.02)
    taken: list[socket.socket] = []
    troubles: list[OSError] = []
    with listen_unix(run_dir / "s.sock") as real:
        listener: Any = Exhausted(real, 2)
        task = asyncio.create_task(
            accept(listener, lambda sock, _: taken.append(sock), troubles.append)
        )
        with await connect_unix(run_dir / "s.sock"):
            await until(lambda: bool(taken))
        task.cancel()
        await asyncio.wait({task})
    assert [error.errno for error in troubles] == [errno.EMFILE] * 2
    taken[0].close()


async def test_a_connection_that_comes_as_its_group_ends_is_closed() -> None:
    """The group takes no more tasks: neither the socket nor the work for it is left behind."""
    here, there = socket.socketpair()
    served = []

    async def serve() -> None:
        served.append(1)

    async def end(group: asyncio.TaskGroup) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            assert begin(group, serve(), here) is None

    async def own() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(end(group))

    owner = asyncio.create_task(own())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    owner.cancel()
    await asyncio.wait({owner})
    assert owner.cancelled()
    assert here.fileno() == -1
    assert served == []
    there.close()
