"""A process in a network namespace of its own that does what the test process asks of it.

Run as ``python child.py node`` (may carry a data plane) or ``python child.py box`` (a container).
Requests and answers are length-prefixed pickles on standard input and output.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import ipaddress
import os
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(
    address: str, *, size: int = 56, count: int = 1, interval: float = 0.0, timeout: float = 0.5
) -> int:
    """Send echo requests, whole IP packets of ``size`` bytes, and return how many came back."""
    pinger = Pinger(address, size)
    got = 0
    try:
        for _ in range(count):
            got += pinger.one(timeout)
            if interval:
                time.sleep(interval)
    finally:
        pinger.close()
    return got


def ping_until(address: str, seconds: float) -> bool:
    """Ping every 2 ms, answers or not, until one comes; whether it came in time."""
    pinger = Pinger(address)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            pinger.send()
            rest = time.monotonic() + 0.002
            while (left := rest - time.monotonic()) > 0:
                if select.select([pinger.socket], [], [], left)[0] and pinger.answered(
                    latest=False
                ):
                    return True
        return False
    finally:
        pinger.close()


class Pinger:
    """An ICMP or ICMPv6 echo client with don't-fragment set."""

    def __init__(self, address: str, size: int = 56) -> None:
        self.v6 = ":" in address
        self.address = address
        family = socket.AF_INET6 if self.v6 else socket.AF_INET
        proto = socket.IPPROTO_ICMPV6 if self.v6 else socket.IPPROTO_ICMP
        self.socket = socket.socket(family, socket.SOCK_RAW, proto)
        if not self.v6:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        self.payload = b"x" * (size - (48 if self.v6 else 28))
        self.sequence = 0
        self.ident = os.getpid() & 0xFFFF

    def one(self, timeout: float) -> int:
        """Send one request; 1 when its answer came."""
        if not self.send():
            return 0
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                return 0
            if self.answered():
                return 1
        return 0

    def send(self) -> bool:
        """Send the next request; whether the kernel took it."""
        self.sequence = (self.sequence + 1) & 0xFFFF
        kind = 128 if self.v6 else 8
        head = struct.pack("!BBHHH", kind, 0, 0, self.ident, self.sequence)
        body = head + self.payload
        if not self.v6:
            padded = body + b"\0" * (len(body) & 1)
            body = struct.pack("!BBHHH", kind, 0, checksum(padded), self.ident, self.sequence)
            body += self.payload
        try:
            self.socket.sendto(body, (self.address, 0))
        except OSError:
            return False
        return True

    def answered(self, *, latest: bool = True) -> bool:
        """Read one packet; whether it answers the latest request, or any."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            return False
        data = data if self.v6 else data[(data[0] & 15) * 4 :]
        ident, sequence = struct.unpack_from("!HH", data, 4)
        return (data[0], ident) == (129 if self.v6 else 0, self.ident) and (
            sequence == self.sequence or not latest
        )

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Background:
    """Traffic that goes on while the test does something else."""

    def __init__(self, work: Any) -> None:
        self.stop = threading.Event()
        self.result: Any = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Any) -> None:
        try:
            self.result = work(self.stop)
        except Exception as error:  # noqa: BLE001  # raised where the result is asked for
            self.result = error


_background: dict[str, Background] = {}
_servers: list[Any] = []
_started: dict[int, subprocess.Popen[str]] = {}


def ping_start(address: str, interval: float = 0.002, timeout: float = 1.0) -> None:
    """Ping until ping_stop."""

    def work(stop: threading.Event) -> tuple[int, int]:
        pinger = Pinger(address)
        sent = got = 0
        while not stop.is_set():
            sent += 1
            got += pinger.one(timeout)
            stop.wait(interval)
        pinger.close()
        return sent, got

    _background["ping"] = Background(work)


def ping_in(path: str, address: str, interval: float = 0.002, timeout: float = 1.0) -> None:
    """Ping from another namespace, by path, until ping_stop."""
    made: list[Pinger] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(path).open("rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        made.append(Pinger(address))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()

    def work(stop: threading.Event) -> tuple[int, int]:
        sent = got = 0
        while not stop.is_set():
            sent += 1
            got += made[0].one(timeout)
            stop.wait(interval)
        made[0].close()
        return sent, got

    _background["ping"] = Background(work)


def ping_stop() -> tuple[int, int]:
    """Return (sent, answered)."""
    return finish("ping")


def finish(name: str) -> Any:
    """End background traffic and return its result."""
    job = _background.pop(name)
    job.stop.set()
    job.thread.join()
    if isinstance(job.result, Exception):
        raise job.result
    return job.result


def serve(address: str, port: int = 7777) -> None:
    """Serve TCP: answer each connection with the client's address, then echo; UDP: echo."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=64)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((address, port))
    _servers.extend([listener, udp])

    def talk(connection: socket.socket, peer: str) -> None:
        with connection:
            connection.sendall(peer.encode().ljust(64))
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=talk, args=(connection, peer[0]), daemon=True).start()

    def echo() -> None:
        while True:
            data, peer = udp.recvfrom(65536)
            udp.sendto(data, peer)

    threading.Thread(target=accept, daemon=True).start()
    threading.Thread(target=echo, daemon=True).start()


def fetch(address: str, size: int = 0, port: int = 7777, timeout: float = 5.0) -> tuple[str, int]:
    """Connect by TCP, send ``size`` bytes and count what returns: (own address as seen, bytes)."""
    with socket.create_connection((address, port), timeout=timeout) as connection:
        seen = b""
        while len(seen) < 64:
            seen += connection.recv(64 - len(seen))
        sender = threading.Thread(target=connection.sendall, args=(b"y" * size,))
        sender.start()
        got = 0
        while got < size:
            got += len(connection.recv(1 << 16))
        sender.join()
    return seen.decode().strip(), got


def refusal(address: str, port: int = 7777, timeout: float = 3.0) -> str:
    """Return what connecting ends in: the error's name, empty when it succeeds."""
    try:
        socket.create_connection((address, port), timeout=timeout).close()
    except TimeoutError:
        return "TIMEOUT"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def advertise(source: str, device: str) -> None:
    """Send one router advertisement: we are a default router for half an hour (RFC 4861, 4.2)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        index = socket.if_nametoindex(device)
        sender.bind((source, 0, 0, index))
        sender.sendto(
            struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, index)
        )


def segment(address: str, port: int = 7777) -> int:
    """Return the largest TCP segment that a connection would send, bytes."""
    with socket.create_connection((address, port), timeout=5.0) as connection:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def stream_start(address: str, port: int = 7777) -> None:
    """Keep one TCP connection busy until stream_stop."""
    connection = socket.create_connection((address, port), timeout=5.0)

    def work(stop: threading.Event) -> int:
        rounds = 0
        with connection:
            left = 64
            while left:
                left -= len(connection.recv(left))
            while not stop.is_set():
                connection.sendall(b"z" * 1000)
                left = 1000
                while left:
                    left -= len(connection.recv(left))
                rounds += 1
                stop.wait(0.002)
        return rounds

    _background["stream"] = Background(work)


def udp_from(source: str, address: str, port: int = 7777, timeout: float = 0.3) -> bool:
    """Send a datagram with any source address, as a spoofer would; tell whether an echo came."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.settimeout(timeout)
        sender.sendto(b"spoof", (address, port))
        try:
            sender.recv(100)
        except OSError:
            return False
        return True


def udp_count_start(address: str, port: int = 7778) -> None:
    """Count datagrams that arrive at a port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    receiver.bind((address, port))
    _background["count"] = Background(lambda stop: _count(receiver, stop))


def _count(receiver: socket.socket, stop: threading.Event) -> list[str]:
    seen = []
    with receiver:
        while not stop.is_set() or select.select([receiver], [], [], 0.1)[0]:
            if select.select([receiver], [], [], 0.02)[0]:
                seen.append(receiver.recvfrom(100)[1][0])
    return seen


def send_udp(source: str, address: str, port: int = 7778) -> None:
    """Send one datagram from ``source``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.sendto(b"x", (address, port))


def capture_start(device: str) -> None:
    """Keep every frame that passes a device, in either direction."""
    receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    receiver.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    receiver.bind((device, 0))

    def work(stop: threading.Event) -> list[bytes]:
        frames = []
        # Once told to stop, one more look that finds nothing ends it.
        while select.select([receiver], [], [], 0.05)[0] or not stop.is_set():
            if select.select([receiver], [], [], 0)[0]:
                frames.append(receiver.recv(1 << 16))
        _, dropped = struct.unpack("=II", receiver.getsockopt(263, 6, 8))  # PACKET_STATISTICS
        receiver.close()
        if dropped:
            raise RuntimeError(f"the capture has missed {dropped} frames")
        return frames

    _background["capture"] = Background(work)


def sums_by_device(device: str, *, on: bool) -> None:
    """Say whether checksums are left to a device of this namespace."""
    from agent.dataplane import ethtool

    ethtool.set_checksums(device, on=on)


def inject(device: str, frames: list[bytes]) -> None:
    """Send whole frames out of a device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        for frame in frames:
            sender.send(frame)


def send_payload(address: str, port: int, data: bytes, count: int = 1) -> None:
    """Send datagrams with this content."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(data, (address, port))


def ipsec(settings: Any, ops: Any = ()) -> tuple[dict[Any, Any], Any]:
    """Execute IPsec operations in this namespace; return what it then holds, and its counters."""
    from agent.dataplane.ipsec import Ipsec

    machine = Ipsec(settings)
    try:
        machine.apply(ops)
        return machine.observe(), machine.status()
    finally:
        machine.close()


def sh(command: str) -> str:
    """Run a shell command in this namespace and return what it prints."""
    done = subprocess.run(
        ["/bin/sh", "-ec", command], capture_output=True, text=True, check=False, timeout=20
    )
    if done.returncode:
        raise RuntimeError(f"{command!r}: {done.stderr}")
    return done.stdout


def start(words: list[str]) -> int:
    """Start a program and return its process id once it listens, as its first lines of output say."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    _started[process.pid] = process
    assert process.stdout is not None
    for line in process.stdout:
        if "listening" in line:
            break
    return process.pid


def await_end(pid: int, timeout: float = 5.0) -> None:
    """Wait for a program's end; kill it if it does not."""
    process = _started.pop(pid)
    try:
        process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def patiently(words: list[str], attempts: int = 5) -> str:
    """Run a program until it succeeds, and in time, and return what it printed."""
    said = ""
    for attempt in range(attempts):
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            said = "it does not end"
            continue
        if done.returncode == 0:
            return done.stdout
        said = done.stdout[-500:] + done.stderr
        time.sleep(0.1 * attempt)
    raise RuntimeError(f"{words}: {said}")


def read(path: str) -> str:
    """Return a file as this namespace shows it."""
    return Path(path).read_text(encoding="ascii").strip()


class Plane:
    """A Dataplane in an event loop on a thread of its own."""

    def __init__(self, settings: Any) -> None:
        from agent.dataplane import Dataplane

        self.loop = asyncio.new_event_loop()
        self.gone: list[str] = []
        self.plane = Dataplane(settings, gone=self.gone.extend)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.call("ready")

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.task = self.loop.create_task(self.plane.run())
        try:
            self.loop.run_until_complete(self.task)
        except asyncio.CancelledError:
            pass
        finally:
            self.loop.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method from another thread."""
        method = getattr(self.plane, name)
        if not asyncio.iscoroutinefunction(method):
            return method(*args, **kwargs)
        return asyncio.run_coroutine_threadsafe(method(*args, **kwargs), self.loop).result(60)

    def stop(self) -> None:
        """Cancel the data plane and wait for its end."""
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(10)


_planes: list[Plane] = []


def join(pid: int) -> None:
    """Move this process into the network namespace of another."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{pid}/ns/net").open("rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def plane_start(settings: Any) -> None:
    """Start a data plane in this process."""
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    _planes.append(Plane(settings))


def plane(name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the data plane."""
    return _planes[-1].call(name, *args, **kwargs)


def crash(settings: Any, wanted: Any, step: int, name: str, *args: Any) -> bool:
    """Take over as a new daemon, then die by SIGKILL before operation ``step`` of a call.

    Returns whether it died; when not, the call had fewer operations and is done.
    """
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            made = Plane(settings)
            made.call("reconcile", wanted)
            left = [step]

            def before(_: str, __: Any) -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1

            engine = made.plane._engine
            assert engine is not None
            engine._run.before = before
            made.call(name, *args)
            made.stop()
            status = 0
        except BaseException:  # noqa: BLE001  # a forked process has nobody to hand it to
            traceback.print_exc()
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in {0, -signal.SIGKILL}:
        raise RuntimeError(f"the crashing process ended with {code}")
    return code != 0


def succeed(settings: Any, wanted: Any) -> tuple[Any, Any, Any]:
    """Take over as a new daemon and end in good order; two reconciles and a check."""
    made = Plane(settings)
    try:
        return tuple(
            made.call(*call) for call in (("reconcile", wanted), ("reconcile", wanted), ("check",))
        )
    finally:
        made.stop()


def plane_gone() -> list[str]:
    """Return the endpoints reported as gone."""
    return list(_planes[-1].gone)


def plane_stop() -> None:
    """Stop the data plane in good order; the kernel's state stays."""
    _planes.pop().stop()


def destroy_amid_probe(after: float) -> str:
    """Remove everything some seconds after paths began to be tried; returns how the data plane ended."""
    made = _planes[-1]

    async def race() -> None:
        probing = asyncio.ensure_future(made.plane.probe_paths())
        await asyncio.sleep(after)
        await made.plane.destroy()
        await probing

    asyncio.run_coroutine_threadsafe(race(), made.loop).result(30)
    plane_stop()
    return "cancelled" if made.task.cancelled() else repr(made.task.exception())


def timed_plugs(endpoints: list[Any]) -> list[float]:
    """Plug endpoints one after the other and return how many seconds each took."""
    took = []
    for endpoint in endpoints:
        start = time.perf_counter()
        _planes[-1].call("plug", endpoint)
        took.append(time.perf_counter() - start)
    return took


def namespaces(count: int, directory: str) -> list[str]:
    """Make ``count`` namespaces, each bound to a file, and return their paths."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = []

    def make() -> None:
        for number in range(count):
            path = Path(directory) / str(number)
            path.touch()
            if libc.unshare(CLONE_NEWNET) or libc.mount(
                b"/proc/thread-self/ns/net", str(path).encode(), b"none", 0x1000, None
            ):
                raise OSError(ctypes.get_errno(), "namespace")
            paths.append(str(path))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return paths


def reach(pairs: list[tuple[str, str]], timeout: float = 2.0) -> list[tuple[str, str]]:
    """Ping once from each namespace (by path) to an address; return the pairs that got no answer.

    All requests are on their way at once; those without an answer are tried again until the time is up.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pingers: dict[int, tuple[Pinger, tuple[str, str]]] = {}

    def enter(path: str) -> None:
        with Path(path).open("rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def make() -> None:
        for path, address in pairs:
            enter(path)
            pinger = Pinger(address)
            pingers[pinger.socket.fileno()] = (pinger, (path, address))

    def attempt(left: set[int], wait: float) -> None:
        poller = select.poll()
        for fd in left:
            pinger, _ = pingers[fd]
            poller.register(fd, select.POLLIN)
            pinger.send()
        end = time.monotonic() + wait
        while left and (rest := end - time.monotonic()) > 0:
            for fd, _ in poller.poll(rest * 1000):
                if pingers[fd][0].answered():
                    poller.unregister(fd)
                    left.discard(fd)

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    left = set(pingers)
    end = time.monotonic() + timeout
    while left and time.monotonic() < end:
        attempt(left, 0.5)
    missing = [pingers[fd][1] for fd in left]
    for pinger, _ in pingers.values():
        pinger.close()
    return missing


def memory() -> int:
    """Return the memory this process holds, bytes."""
    words = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def timed_peers(net: Any, count: int, vtep: str) -> dict[str, float]:
    """Program remote endpoints and take them away; seconds each, and what the kernel alone takes.

    Of this process's processor time, the kernel's work for it included: other load does not show in it.
    """
    from agent.dataplane import Peer, names, netlink
    from agent.dataplane.model import host_route

    first = net.subnets[0].cidr.network_address + 20000
    peers = [
        Peer(
            network_id=net.id,
            ip=first + i,
            prefixlen=net.subnets[0].cidr.prefixlen,
            mac="02:42:" + (first + i).packed.hex(":"),
            vtep=ipaddress.ip_address(vtep),
        )
        for i in range(count + 1)
    ]
    found: dict[str, float] = {}

    def timed(what: str, number: int, step: Any) -> None:
        began = time.process_time()
        step()
        found[what] = (time.process_time() - began) / number

    plane = _planes[-1]
    timed("programmed at once", count, lambda: plane.call("set_peers", net.id, peers[:-1]))
    timed("told again, unchanged", count, lambda: plane.call("set_peers", net.id, peers[:-1]))
    timed("one more", 1, lambda: plane.call("set_peer", peers[-1]))
    timed("compared", count, lambda: plane.call("check"))
    timed("removed at once", count, lambda: plane.call("set_peers", net.id, []))
    engine = plane.plane._engine
    assert engine is not None
    channel = engine._kernel._router(names.router_name(net.id)).channel
    index = channel.index(names.vxlan_name(net.subnets[0].vni))
    messages = [
        message
        for peer in peers
        for message in (
            netlink.neighbour(index, peer.ip, peer.mac, add=True),
            netlink.fdb(index, peer.mac, peer.vtep, add=True),
            netlink.route(host_route(peer.ip), index=index, kind=netlink.RTN_UNICAST, add=True),
        )
    ]
    batches = [
        b"".join(
            netlink.pack(message, 0, netlink.NLM_F_REQUEST) for message in messages[i : i + 255]
        )
        for i in range(0, len(messages), 255)
    ]
    timed("kernel", count, lambda: [channel._socket.send(batch) for batch in batches])
    plane.call("set_peers", net.id, peers)
    plane.call("set_peers", net.id, [])
    return found


_held: list[socket.socket] = []


def hold_port(address: str, port: int) -> None:
    """Take datagrams and never read them: what does not fit is dropped as late as possible."""
    held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    held.bind((address, port))
    _held.append(held)


def release_ports() -> None:
    """Close what :func:`hold_port` has opened."""
    while _held:
        _held.pop().close()


def timed_datagrams(address: str, port: int, slices: int, each: int = 64) -> float:
    """Send datagrams of 1400 bytes; return the seconds of one in the slices that nobody disturbed.

    Between namespaces of one machine the sender's processor does it all, up to the receiver's socket.
    """
    took = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((address, port))
        send, data, clock = sender.send, bytes(1400), time.perf_counter
        for _ in range(slices):
            began = clock()
            for _ in range(each):
                send(data)
            took.append((clock() - began) / each)
    return sorted(took)[slices // 10]


def timed_pings(address: str, count: int) -> float:
    """Return the seconds from a request to its answer, of those that nobody disturbed."""
    took = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as pinger:
        pinger.settimeout(1)
        pinger.connect((address, 0))
        head = struct.pack("!BBHHH", 8, 0, 0, 7, 7) + bytes(56)
        data = head[:2] + struct.pack("!H", checksum(head)) + head[4:]
        send, receive, clock = pinger.send, pinger.recv, time.perf_counter
        for _ in range(count):
            began = clock()
            send(data)
            while receive(256)[20] != 0:
                pass
            took.append(clock() - began)
    return sorted(took)[count // 10]


def bare_attaches(paths: list[str]) -> list[float]:
    """Give each namespace (by path) a veth, an address and nothing else, and take it away again.

    One prepared message a step, so that what is measured is the kernel; returns seconds each.
    """
    from agent.dataplane import netlink
    from agent.dataplane.channel import Channel

    libc = ctypes.CDLL(None, use_errno=True)
    took = []

    def work() -> None:
        home = Channel()
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        for number, path in enumerate(paths):
            fd = os.open(path, os.O_RDONLY)
            name, mac = f"bare{number}", f"02:42:63:00:{number >> 8:02x}:{number & 255:02x}"
            message = netlink.veth(
                name=name, mac=mac, mtu=1450, group=1, peer="eth0", peer_mac=mac, peer_netns=fd
            )
            start = time.perf_counter()
            home.check([message])
            home.check([netlink.set_link(home.index(name), up=True)])
            libc.setns(fd, CLONE_NEWNET)
            inner = Channel()
            libc.setns(own, CLONE_NEWNET)
            index = inner.index("eth0")
            value = ipaddress.ip_interface(f"10.99.{number >> 8}.{number & 255}/16")
            inner.check([netlink.set_link(index, up=True), netlink.address(index, value, add=True)])
            took.append(time.perf_counter() - start)
            inner.close()
            os.close(fd)
        home.check([netlink.delete_group(1)])
        home.close()
        os.close(own)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return took


def timed_unplugs(endpoint_ids: list[str]) -> list[float]:
    """Unplug endpoints one after the other and return how many seconds each took."""
    took = []
    for endpoint_id in endpoint_ids:
        start = time.perf_counter()
        _planes[-1].call("unplug", endpoint_id)
        took.append(time.perf_counter() - start)
    return took


def drop_namespaces(paths: list[str]) -> None:
    """Remove what :func:`namespaces` made."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        libc.umount2(path.encode(), 2)
        Path(path).unlink()


def main(role: str) -> None:
    """Serve requests until standard input ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    source = sys.stdin.buffer
    if role == "node":
        sh("ip link set lo up")
    while head := source.read(4):
        name, args, kwargs = pickle.loads(source.read(struct.unpack("!I", head)[0]))
        try:
            answer = (True, globals()[name](*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # handed to the test, whatever it is
            error.add_note(traceback.format_exc())
            answer = (False, error)
        data = pickle.dumps(answer)
        out.write(struct.pack("!I", len(data)) + data)
        out.flush()
    while _planes:
        plane_stop()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
