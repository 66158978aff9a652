"""The MTU formula."""

from __future__ import annotations

import pytest

from agent.dataplane.mtu import network_mtu, overlay_mtu


@pytest.mark.parametrize(
    ("underlay", "family", "encrypted", "expected"),
    [
        (1500, 4, False, 1450),  # Docker's
        (1500, 4, True, 1424),  # Docker's: 1500 - 50 - 26
        (1500, 6, False, 1430),
        (1500, 6, True, 1404),
        (9000, 4, False, 8950),
        (1501, 4, True, 1424),  # ESP pads to 4 bytes
        (1504, 4, True, 1428),
    ],
)
def test_the_formula(underlay: int, family: int, encrypted: bool, expected: int) -> None:
    """Overheads of 50 and 70 bytes, 26 more under ESP, then a multiple of 4."""
    assert overlay_mtu(underlay, family, encrypted) == expected


def test_an_encrypted_packet_of_that_size_fills_the_underlay() -> None:
    """20 IP, 8 ESP, 8 IV, 8 UDP, 8 VXLAN, 14 Ethernet, inner, padding to 4 with a 2 byte trailer, 8 ICV."""
    for underlay in range(1400, 1600):
        inner = overlay_mtu(underlay, 4, encrypted=True)
        covered = 8 + 8 + 14 + inner + 2
        assert 20 + 8 + 8 + covered + -covered % 4 + 8 <= underlay


@pytest.mark.parametrize(
    ("wanted", "underlay", "expected"),
    [
        (0, None, 1450),
        (0, 9000, 1450),
        (0, 1400, 1350),
        (8000, 9000, 8000),
        (8000, 1500, 1450),
        (8000, None, 1450),
    ],
)
def test_the_choice(wanted: int, underlay: int | None, expected: int) -> None:
    """Docker's value unless asked for another, and never more than the underlay carries."""
    assert network_mtu(wanted, underlay, 4, encrypted=False) == expected
