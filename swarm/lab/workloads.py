"""Small programs that the demo and the tests run inside containers: ``python -m swarm.lab.workloads``.

They need nothing but Python's standard library, so that the demo works on a bare machine.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from typing import Final

CHUNK: Final = 32 * 1024


class _Page(http.server.BaseHTTPRequestHandler):
    """Answers every path with who is answering, and to whom."""

    def do_GET(self) -> None:  # the library's name
        host, client = socket.gethostname(), self.client_address[0].removeprefix("::ffff:")
        body = f"hello from {host} to {client}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    """Listens in both IP versions, where the kernel has both."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int) -> int:
    """Serve one page over HTTP until killed."""
    _Server(("", port), _Page).serve_forever()
    return 0


def fetch(url: str, timeout: float) -> int:
    """Print a page; 1 when it cannot be had, with the reason on standard error."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310  # http, from the command line
            sys.stdout.write(answer.read().decode())
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        print(f"cannot fetch {url}: {reason}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def resolve(name: str) -> int:
    """Print the IPv4 addresses of a name, one a line; 1 when it has none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        print(f"cannot resolve {name}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for address in sorted({str(entry[4][0]) for entry in found}):
        print(address)  # noqa: T201
    return 0


def give(port: int, seconds: float, rate: int) -> int:
    """Send one client ``rate`` bytes a second for ``seconds`` and print count and SHA-256 of them."""
    digest, sent = hashlib.sha256(), 0
    with socket.create_server(("", port)) as listener:
        connection, _ = listener.accept()
        with connection:
            began = time.monotonic()
            while (elapsed := time.monotonic() - began) < seconds:
                if sent > elapsed * rate:
                    time.sleep((sent / rate) - elapsed)
                block = hashlib.sha256(str(sent).encode()).digest() * (CHUNK // 32)
                connection.sendall(block)
                digest.update(block)
                sent += len(block)
    print(sent, digest.hexdigest(), flush=True)  # noqa: T201
    return 0


def take(host: str, port: int, timeout: float) -> int:
    """Read until the sender is done (or silent for ``timeout`` seconds); print bytes, SHA-256 and the longest pause in milliseconds."""
    digest, received, longest = hashlib.sha256(), 0, 0.0
    with socket.create_connection((host, port), timeout=timeout) as connection:
        last = time.monotonic()
        while data := connection.recv(CHUNK):
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            digest.update(data)
            received += len(data)
    print(received, digest.hexdigest(), round(longest * 1000), flush=True)  # noqa: T201
    return 0


def echo(port: int) -> int:
    """Send every UDP datagram back to where it came from, until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("", port))
        while True:
            data, peer = listener.recvfrom(65_535)
            listener.sendto(data, peer)


def ask(host: str, port: int, size: int, timeout: float) -> int:
    """Send one UDP datagram of ``size`` bytes to an echo and print the size that came back; 1 when none did."""
    asked = (hashlib.sha256(host.encode()).digest() * (size // 32 + 1))[:size]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(timeout)
        try:
            sender.connect((host, port))
            sender.send(asked)
            answer = sender.recv(65_535)
        except OSError as error:
            print(f"no answer from {host}: {error}", file=sys.stderr)  # noqa: T201
            return 1
    print(len(answer))  # noqa: T201
    return int(answer != asked)


def knock(host: str, port: int, seconds: float) -> int:
    """Send numbered UDP datagrams to an echo, 50 a second, until the time is over or SIGTERM comes.

    Each is answered before the next is sent, or counts as lost after five seconds. Prints how many were
    sent and how many answered.
    """
    sent = answered = 0
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(5.0)
        sender.connect((host, port))
        while time.monotonic() < end and not told:
            sent += 1
            data = str(sent).encode()
            sender.send(data)
            try:
                while sender.recv(100) != data:
                    pass
                answered += 1
            except OSError:
                continue
            time.sleep(0.02)
    print(sent, answered, flush=True)  # noqa: T201
    return int(sent != answered)


def forge(target: str, vni: int, count: int) -> int:
    """Send VXLAN packets in clear, as somebody without keys would: no container is addressed."""
    inner = bytes.fromhex("024200000001024200000002") + b"\x08\x00" + bytes(46)
    data = (0x08 << 24).to_bytes(4, "big") + (vni << 8).to_bytes(4, "big") + inner
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(data, (target, 4789))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the program that the command line names."""
    parser = argparse.ArgumentParser(prog="workloads", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True)
    entry = programs.add_parser("serve")
    entry.add_argument("port", type=int)
    entry = programs.add_parser("fetch")
    entry.add_argument("url")
    entry.add_argument("--timeout", type=float, default=5.0)
    entry = programs.add_parser("resolve")
    entry.add_argument("name")
    entry = programs.add_parser("give")
    entry.add_argument("port", type=int)
    entry.add_argument("--seconds", type=float, default=5.0)
    entry.add_argument("--rate", type=int, default=20_000_000)
    entry = programs.add_parser("take")
    entry.add_argument("host")
    entry.add_argument("port", type=int)
    entry.add_argument("--timeout", type=float, default=20.0)
    entry = programs.add_parser("echo")
    entry.add_argument("port", type=int)
    entry = programs.add_parser("ask")
    entry.add_argument("host")
    entry.add_argument("port", type=int)
    entry.add_argument("--size", type=int, default=64)
    entry.add_argument("--timeout", type=float, default=3.0)
    entry = programs.add_parser("knock")
    entry.add_argument("host")
    entry.add_argument("port", type=int)
    entry.add_argument("seconds", type=float)
    entry = programs.add_parser("forge")
    entry.add_argument("target")
    entry.add_argument("vni", type=int)
    entry.add_argument("count", type=int)
    given = parser.parse_args(arguments)
    if given.program == "knock":
        return knock(given.host, given.port, given.seconds)
    if given.program == "forge":
        return forge(given.target, given.vni, given.count)
    if given.program == "echo":
        return echo(given.port)
    if given.program == "ask":
        return ask(given.host, given.port, given.size, given.timeout)
    if given.program == "serve":
        return serve(given.port)
    if given.program == "fetch":
        return fetch(given.url, given.timeout)
    if given.program == "resolve":
        return resolve(given.name)
    if given.program == "give":
        return give(given.port, given.seconds, given.rate)
    return take(given.host, given.port, given.timeout)


if __name__ == "__main__":
    sys.exit(main())
