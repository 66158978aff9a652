"""An emulated machine under Debian's stock kernel, whose root is this machine's, read-only.

The test kernel of a container host often lacks ESP; the stock kernel has it. The guest sees the
same files (9p), so it runs this very checkout; it can write only to its own /tmp, /run and /var/lib
and to one directory of ours. Nothing is installed, no disk image is made.
"""

from __future__ import annotations

import compileall
import gzip
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREPARE = ROOT / "deploy" / "prepare-kernel.sh"
PACKAGES = ("agent", "manager", "swarm", "tests")
PREPARE_SECONDS = 300
MEMORY = 2048
"""MiB."""

BOOT_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
)
"""What reaches the root file system, in the order of their needs; the rest loads itself."""

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /new /host
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in {modules}; do [ ! -e /$m.ko ] || $b insmod /$m.ko || echo "no module $m"; done
opts=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,cache=loose,$opts root /new || $b poweroff -f
$b mount -o bind /new /host
for d in /tmp /run /var/lib; do $b mount -t tmpfs tmpfs /new$d; done
$b mkdir -p /new/run/out /new/run/netns
for d in {keep}; do  # what the checkout needs of what tmpfs has just hidden
  [ -e /new$d ] || {{ $b mkdir -p /new$d; $b mount -o bind /host$d /new$d; }}
done
$b mount -t 9p -o $opts out /new/run/out || $b poweroff -f
$b cp $b /new/run/busybox
printf '#!/bin/sh\\nexec %s -d %s "$@"\\n' {modprobe} {root} > /new/run/modprobe
$b chmod +x /new/run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe
for d in proc sys dev; do $b mount -o move /$d /new/$d; done
exec $b switch_root /new /bin/sh /run/out/run.sh
"""

_RUN = """#!/bin/sh
{environment}
cd {directory}
{command} > /run/out/output 2>&1
echo $? > /run/out/status
sync
/run/busybox poweroff -f
"""


class UnavailableError(Exception):
    """This host cannot run the machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the guest's command printed and how it ended; ``status`` None when it did not."""

    status: int | None
    output: str
    console: str
    seconds: float


def prepare() -> Path:
    """Return the directory with the unpacked kernel, fetching it and the emulator when missing.

    Raises:
        UnavailableError: they cannot be had here.
    """
    try:
        done = subprocess.run(
            ["bash", str(PREPARE)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PREPARE_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{PREPARE.name}: {error}") from error
    if done.returncode:
        raise UnavailableError(f"{PREPARE.name}: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip().splitlines()[-1])


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return an initramfs archive (format newc: linux/Documentation/driver-api/early-userspace)."""
    parts: list[bytes] = []
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]
    return b"".join(parts)


def _initramfs(cache: Path, keep: Sequence[Path]) -> bytes:
    busybox = shutil.which("busybox") or "/bin/busybox"
    kernel = next((cache / "root/lib/modules").iterdir())
    found = {path.stem: path for path in kernel.rglob("*.ko") if path.stem in BOOT_MODULES}
    modprobe = shutil.which("modprobe", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    init = _INIT.format(
        modules=" ".join(BOOT_MODULES),
        keep=" ".join(shlex.quote(str(path)) for path in keep),
        modprobe=modprobe or "/run/busybox modprobe",
        root=cache / "root",
    )
    entries = [("bin", 0o040755, b""), ("bin/busybox", 0o100755, Path(busybox).read_bytes())]
    entries += [(f"{name}.ko", 0o100644, path.read_bytes()) for name, path in found.items()]
    entries.append(("init", 0o100755, init.encode()))
    return gzip.compress(_cpio(entries), 1)


def run(
    command: Sequence[str],
    *,
    cache: Path,
    share: Path,
    environment: Mapping[str, str],
    keep: Sequence[Path] = (),
    timeout: float = 600,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Boot, run a command in the checkout, and power off.

    Args:
        command: what to run, as root.
        cache: from :func:`prepare`.
        share: an empty directory; the guest sees it as /run/out and may write to it.
        environment: exported before.
        keep: directories to show even if the guest's own /tmp or /run would hide them.
        timeout: seconds; then the emulator is killed.
        say: called with what the command prints, while it does.
    """
    for package in PACKAGES:  # the guest cannot write them, and compiles slowly
        compileall.compile_dir(ROOT / package, quiet=2)
    (share / "initramfs").write_bytes(_initramfs(cache, (ROOT, cache, *keep)))
    exports = "\n".join(f"export {key}={shlex.quote(value)}" for key, value in environment.items())
    text = _RUN.format(environment=exports, directory=ROOT, command=shlex.join(command))
    (share / "run.sh").write_text(text, encoding="utf-8")
    console = share / "console"
    arguments = [
        *("nice", "-n", "10", "qemu-system-x86_64", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-monitor", "none"),
        # Not KVM: where tests run, its device is often there and does not work.
        *("-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", str(min(2, os.cpu_count() or 1)), "-m", str(MEMORY)),
        *("-serial", f"file:{console}", "-initrd", str(share / "initramfs")),
        *("-kernel", str(next((cache / "root/boot").glob("vmlinuz-*")))),
        *("-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off"),
        *("-fsdev", "local,id=root,path=/,security_model=none,multidevs=remap,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"local,id=out,path={share},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=out,mount_tag=out"),
    ]
    start = time.monotonic()
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        ended = threading.Event()
        follower = threading.Thread(target=_follow, args=(share / "output", ended, say or _mute))
        follower.start()
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            ended.set()
            follower.join()
    status = share / "status"
    output = share / "output"
    return Result(
        status=int(status.read_text("ascii")) if status.exists() else None,
        output=output.read_text("utf-8", "replace") if output.exists() else "",
        console=said.decode(errors="replace")
        + (console.read_text("utf-8", "replace") if console.exists() else ""),
        seconds=time.monotonic() - start,
    )


def _mute(_: str) -> None:
    """Say nothing."""


def _follow(path: Path, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Pass on what a file grows by, until told that it has ended."""
    place = 0
    while True:
        last = ended.wait(0.5)
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(place)
                if text := file.read():
                    say(text)
                place = file.tell()
        if last:
            return
