"""What a lab could leave behind on the machine, as a value that can be compared before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from swarm.kernel.nft import Nft
from swarm.lab.processes import MARK


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything of the kinds that labs make, by name."""

    namespaces: frozenset[str]
    links: frozenset[str]
    tables: frozenset[str]
    mounts: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]

    def left_behind(self, later: Machine) -> list[str]:
        """Return what ``later`` has and this machine had not, one line each."""
        return [
            f"{kind}: {name}"
            for kind in self.__slots__
            for name in sorted(getattr(later, kind) - getattr(self, kind))
        ]


def observe(lab: str) -> Machine:
    """Look at this machine; processes and files only as far as they carry the mark of ``lab``."""
    with Nft() as nft:
        listed = nft.run([{"list": {"tables": None}}])
    tables = {
        f"{entry['table']['family']} {entry['table']['name']}"
        for entry in listed
        if "table" in entry
    }
    roots = (Path("/run/swarm-lab") / lab, Path("/var/lib/swarm-lab") / lab)
    return Machine(
        namespaces=frozenset(_names(Path("/run/netns"))),
        links=frozenset(_names(Path("/sys/class/net"))),
        tables=frozenset(tables),
        mounts=frozenset(
            line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ),
        processes=frozenset(_marked(f"{MARK}={lab}/".encode())),
        files=frozenset(str(root) for root in roots if root.exists()),
    )


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def _marked(mark: bytes) -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if any(
                    part.startswith(mark) for part in (entry / "environ").read_bytes().split(b"\0")
                ):
                    command = (
                        (entry / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                    )
                    found.add(f"{entry.name} {command[:80]}")
            except OSError:
                continue
    return found
