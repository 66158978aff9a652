"""What a lab could leave behind on the machine, as a value that can be compared before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm.kernel.nft import Nft
from swarm.lab.processes import MARK, bears

_ROOTS: Final = (Path("/run/swarm-lab"), Path("/var/lib/swarm-lab"))


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
    """Look at this machine; what belongs to other labs, and files and processes of others, do not count."""
    with Nft() as nft:
        listed = nft.run([{"list": {"tables": None}}])
    tables = {
        f"{entry['table']['family']} {entry['table']['name']}"
        for entry in listed
        if "table" in entry
    }
    others = _names(_ROOTS[0]) - {lab}
    return Machine(
        namespaces=frozenset(
            name for name in _names(Path("/run/netns")) if name.partition("-")[0] not in others
        ),
        links=frozenset(_names(Path("/sys/class/net"))),
        tables=frozenset(tables),
        mounts=frozenset(_namespace_mounts(others)),
        processes=frozenset(_processes(lab)),
        files=frozenset(str(root / lab) for root in _ROOTS if (root / lab).exists()),
    )


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def _namespace_mounts(others: set[str]) -> set[str]:
    """Return where namespaces are mounted: the only kind of mount that labs and daemons make."""
    foreign = tuple(f"{root}/{name}/" for root in _ROOTS for name in others)
    foreign += tuple(f"/run/netns/{name}-" for name in others)
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        if after.startswith("nsfs ") and not place.startswith(foreign):
            found.add(place)
    return found


def _processes(lab: str) -> set[str]:
    mark, place = f"{MARK}={lab}".encode(), f"{_ROOTS[0] / lab}/".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if bears(entry, mark, place):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.add(f"{entry.name} {command.decode(errors='replace')[:80]}")
            except OSError:
                continue
    return found
