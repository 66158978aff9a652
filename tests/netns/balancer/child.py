"""The data plane's child process, with a balancer beside the data plane and some more traffic."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

_spec = importlib.util.spec_from_file_location(
    "dataplane_child", Path(__file__).parents[1] / "dataplane" / "child.py"
)
assert _spec is not None
assert _spec.loader is not None
base = importlib.util.module_from_spec(_spec)
sys.modules["dataplane_child"] = base
_spec.loader.exec_module(base)

SCTP = 132
"""Protocol number; Python names it only where the C library does."""

_balancers: list[Any] = []


def balancer_start() -> None:
    """Start a balancer on the newest data plane, in its loop."""
    from agent.balancer import Balancer

    plane = base._planes[-1]
    balancer = Balancer(plane.plane, audit=0.3)

    async def start() -> None:
        task = asyncio.ensure_future(balancer.run())
        plane.task.add_done_callback(lambda _: task.cancel())

    asyncio.run_coroutine_threadsafe(start(), plane.loop).result(10)
    _balancers.append(balancer)


def balance(name: str, *args: Any) -> Any:
    """Call a method of the balancer, then wait until nothing is left to apply."""
    plane, balancer = base._planes[-1], _balancers[-1]

    async def work() -> Any:
        result = getattr(balancer, name)(*args)
        if asyncio.iscoroutine(result):
            result = await result
        async with asyncio.timeout(20):
            while any(n.dirty for n in balancer._networks.values()):  # noqa: ASYNC110  # as a user sees it
                await asyncio.sleep(0.005)
            await plane.plane.path_mtu()  # behind whatever the worker is still doing
            await asyncio.sleep(0)
        return result

    return asyncio.run_coroutine_threadsafe(work(), plane.loop).result(60)


_meshes: list[Any] = []
_peers: list[Any] = []


def mesh_start(run_dir: Path, vtep: Any) -> None:
    """Start a routing mesh beside the newest balancer."""
    from agent.balancer.mesh import Mesh

    plane = base._planes[-1]
    mesh = Mesh(plane.plane, _balancers[-1], routers=run_dir / "netns", vtep=vtep, audit_every=0.3)

    async def start() -> None:
        task = asyncio.ensure_future(mesh.run())
        plane.task.add_done_callback(lambda _: task.cancel())

    asyncio.run_coroutine_threadsafe(start(), plane.loop).result(10)
    _meshes.append(mesh)


def mesh(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the mesh; then wait until mesh and balancer have nothing left to do."""
    plane, each = base._planes[-1], _meshes[-1]

    async def work() -> Any:
        result = getattr(each, name)(*args, **kwargs)
        if asyncio.iscoroutine(result):
            result = await result
        return result

    result = asyncio.run_coroutine_threadsafe(work(), plane.loop).result(60)
    for _ in range(200):
        ingress = each._ingress
        if not each._dirty.is_set() and (ingress is None or ingress.held is not None):
            break
        time.sleep(0.01)
    balance("vips", "")
    return result


def drifts() -> tuple[int, int]:
    """Return how often balancer and mesh found their tables changed by somebody else."""
    return _balancers[-1].drift, _meshes[-1].drift if _meshes else 0


def mesh_enter(net: Any, *addresses: str) -> None:
    """Take part, with the peers that mesh_peer tells of."""
    own = [ipaddress.ip_interface(address) for address in addresses]
    mesh("enter", net, own, lambda: _peers)


def mesh_peer(peer: Any) -> None:
    """Put a peer into the data plane, and before the mesh."""
    base._planes[-1].call("set_peer", peer)
    _peers.append(peer)
    mesh("touch", peer.network_id)


def mesh_forget(address: str) -> None:
    """Take a peer out of the mesh's view; the data plane keeps it."""
    _peers[:] = [peer for peer in _peers if str(peer.ip) != address]
    mesh("touch", _meshes[-1]._ingress.network.id)


def ask_from(source: str, source_port: int, address: str, port: int) -> str:
    """Ask by TCP from a given address and port; the whole answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.settimeout(3.0)
        connection.bind((source, source_port))
        connection.connect((address, port))
        base._servers.append(connection.dup())  # open beside the next one
        return connection.recv(256).decode().strip()


def steer(device: str, address: str, gateway: str) -> None:
    """Have this container answer from an address by its interface."""
    from agent.balancer.steering import link_container

    link_container(device, ipaddress.ip_address(address), ipaddress.ip_address(gateway))


def answer(address: str, word: str, port: int = 8000) -> None:
    """Serve TCP and UDP: answer ``WORD CLIENT``; a TCP client that speaks first is echoed on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=512)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((address, port))
    base._servers.extend([listener, udp])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listener.accept()
                threading.Thread(target=talk, args=(connection, peer[0]), daemon=True).start()

    def talk(connection: socket.socket, peer: str) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(f"{word} {peer}\n".encode())
            while data := connection.recv(65536):
                connection.sendall(data)

    def echo() -> None:
        with contextlib.suppress(OSError):
            while True:
                _, peer = udp.recvfrom(65536)
                udp.sendto(f"{word} {peer[0]}\n".encode(), peer)

    threading.Thread(target=accept, daemon=True).start()
    threading.Thread(target=echo, daemon=True).start()


def ask(address: str, port: int = 8000, timeout: float = 3.0) -> tuple[str, str]:
    """Connect by TCP and return (word, own address as seen)."""
    with socket.create_connection((address, port), timeout=timeout) as connection:
        text = b""
        while not text.endswith(b"\n"):
            data = connection.recv(256)
            if not data:
                raise ConnectionError("no answer")
            text += data
    word, seen = text.decode().split()
    return word, seen


def ask_many(address: str, count: int, port: int = 8000) -> list[str]:
    """Connect ``count`` times and return the words."""
    return [ask(address, port)[0] for _ in range(count)]


def connections_per_second(address: str, port: int, count: int) -> float:
    """Connect ``count`` times, each for one line, and return how many that is a second."""
    began = time.perf_counter()
    for _ in range(count):
        ask(address, port)
    return count / (time.perf_counter() - began)


def crc32c(data: bytes) -> int:
    """Return the checksum of SCTP (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp_knock(address: str, port: int, source_port: int = 40000) -> None:
    """Send an SCTP INIT, as a kernel with SCTP would."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 1)
    head = struct.pack("!HHI", source_port, port, 0)
    check = struct.pack("<I", crc32c(head + bytes(4) + chunk))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, SCTP) as channel:
        channel.sendto(head + check + chunk, (address, 0))


def sctp_open(version: int = 4) -> None:
    """Begin to take in every SCTP packet that is for this namespace."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    channel = socket.socket(family, socket.SOCK_RAW, SCTP)
    channel.settimeout(3.0)
    base._servers.append(channel)


def sctp_heard() -> tuple[str, int]:
    """Return where the next SCTP packet came from, and its destination port."""
    channel = base._servers[-1]
    data, peer = channel.recvfrom(4096)
    if channel.family == socket.AF_INET:
        data = data[(data[0] & 15) * 4 :]
    return peer[0], int.from_bytes(data[2:4])


def ask_udp(address: str, port: int = 8000, source_port: int = 0, timeout: float = 1.0) -> str:
    """Send a datagram and return the answer; the error's name if there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind(("", source_port))
        sender.settimeout(timeout)
        sender.connect((address, port))
        try:
            sender.send(b"?")
            return sender.recv(256).decode().strip()
        except OSError as error:
            return type(error).__name__


def refused(address: str, port: int = 8000) -> tuple[str, float]:
    """Try to connect; the error's name and how many seconds it took."""
    began = time.monotonic()
    try:
        ask(address, port)
    except OSError as error:
        return type(error).__name__, time.monotonic() - began
    return "", time.monotonic() - began


def load_start(address: str, port: int = 8000, clients: int = 4) -> None:
    """Connect and ask from several threads until load_stop."""

    def work(stop: threading.Event) -> tuple[dict[str, int], list[str]]:
        words: dict[str, int] = {}
        errors: list[str] = []

        def client() -> None:
            while not stop.is_set():
                try:
                    word, _ = ask(address, port)
                    words[word] = words.get(word, 0) + 1
                except OSError as error:
                    errors.append(repr(error))
                stop.wait(0.002)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return words, errors

    base._background["load"] = base.Background(work)


def hold(address: str, port: int = 8000) -> str:
    """Open a connection and keep it; the word."""
    connection = socket.create_connection((address, port), timeout=3.0)
    text = b""
    while not text.endswith(b"\n"):
        text += connection.recv(256)
    base._servers.append(connection)
    return text.decode().split()[0]


def held() -> bool:
    """Tell whether the connection kept by :func:`hold` still echoes."""
    connection = base._servers[-1]
    try:
        connection.sendall(b"ping")
        return bool(connection.recv(16) == b"ping")
    except OSError:
        return False


def let_go() -> None:
    """Close the connection kept by :func:`hold`."""
    base._servers.pop().close()


def unserve() -> None:
    """Close all servers of this process."""
    while base._servers:
        base._servers.pop().close()


for _name, _function in list(globals().items()):
    if callable(_function) and getattr(_function, "__module__", "") == __name__:
        setattr(base, _name, _function)

if __name__ == "__main__":
    base.main(sys.argv[1])
