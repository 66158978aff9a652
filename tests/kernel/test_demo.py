"""``swarm lab demo --encrypted`` under the stock kernel, in a machine of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kernel import demo, machine

OUTSIDE = True
"""This test starts an emulated machine and does not run in one."""

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


def test_the_encrypted_demo_shows_esp_and_nothing_else(tmp_path: Path) -> None:
    """Real daemons, keys from the managers, a capture, forged frames, three rotations, a dead agent."""
    try:
        done = demo.run(tmp_path)
    except machine.UnavailableError as error:
        pytest.skip(f"needs an emulated kernel with ESP: {error}")
    assert done.status == 0, done.output[-3000:] + done.console[-1000:]
    seen = re.findall(
        r"on the wire of w1: (\d+) ESP packets, VXLAN of net1 (\d+), VXLAN of net2 (\d+)",
        " ".join(done.output.split()),
    )
    assert len(seen) == 3
    assert all(int(esp) > 0 and int(clear) == 0 for esp, clear, _ in seen)
    assert int(seen[0][2]) > 0, "the capture sees what is in clear"
    assert "taken in: net1 0, net2 20" in done.output
