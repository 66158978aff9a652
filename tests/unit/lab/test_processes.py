"""Which processes belong to which host."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.lab.processes import bears


@pytest.mark.parametrize(
    ("environ", "cmdline", "holds"),
    [
        (b"A=b\0SWARM_LAB_HOST=lab/w1\0", b"sleep\09\0", True),
        (b"SWARM_LAB_HOST=lab/w10\0", b"sleep\09\0", False),
        (b"SWARM_LAB_HOST=lab\0", b"sleep\09\0", False),
        (b"", b"python\0-m\0agent.workload.shim\0/run/swarm-lab/lab/w1/run/x\0", True),
        (b"", b"python\0-m\0agent.workload.shim\0/run/swarm-lab/lab/w10/run/x\0", False),
        (b"", b"less\0/run/swarm-lab/lab/w1/log\0", False),
        (b"", b"", False),
    ],
)
def test_marks_and_places(tmp_path: Path, environ: bytes, cmdline: bytes, holds: bool) -> None:
    """A mark counts whole, a place only for modules of ours; w10 is not w1."""
    (tmp_path / "environ").write_bytes(environ)
    (tmp_path / "cmdline").write_bytes(cmdline)
    assert bears(tmp_path, b"SWARM_LAB_HOST=lab/w1", b"/run/swarm-lab/lab/w1/") is holds


def test_the_mark_of_a_whole_lab(tmp_path: Path) -> None:
    """The part before a slash stands for every host of the lab, and of no other lab."""
    (tmp_path / "environ").write_bytes(b"SWARM_LAB_HOST=lab/w1\0")
    (tmp_path / "cmdline").write_bytes(b"")
    assert bears(tmp_path, b"SWARM_LAB_HOST=lab", b"/none/")
    assert not bears(tmp_path, b"SWARM_LAB_HOST=la", b"/none/")
