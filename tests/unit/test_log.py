"""What processes write when something goes wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from swarm.log import configure


class Terminal(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_tracebacks_tell_the_place_and_no_secret(stream: type[io.StringIO]) -> None:
    """Local variables (join tokens, keys) never reach the log; the failing function does."""
    out = stream()
    configure(stream=out)

    def join(token: str) -> None:
        del token
        raise ValueError("refused")

    try:
        join("SWMTKN-1-" + "secret")
    except ValueError:
        structlog.get_logger().exception("join.failed")
    text = out.getvalue()
    assert "SWMTKN" not in text.replace('join("SWMTKN-1-" + "secret")', "")
    assert "join" in text
    assert "refused" in text


def test_lines_are_json_where_nobody_looks() -> None:
    """Each event is one JSON object with its time and level."""
    out = io.StringIO()
    configure(stream=out)
    structlog.get_logger().info("session.opened", node="n1")
    line = json.loads(out.getvalue())
    assert (line["event"], line["node"], line["level"]) == ("session.opened", "n1", "info")
    assert line["timestamp"].endswith("Z")
