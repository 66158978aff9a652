"""Frames between agent and shim, in any pieces and from anybody."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.workload import frames

FRAMES = st.lists(
    st.tuples(st.integers(frames.REQUEST, frames.LOGGED), st.binary(max_size=50)), max_size=8
)


@given(FRAMES, st.lists(st.integers(1, 20)))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frames.pack(kind, payload) for kind, payload in sent)
    splitter = frames.Splitter()
    received = []
    position = 0
    for cut in [*cuts, len(stream)]:
        received += splitter.feed(stream[position : position + cut])
        position += cut
    assert received == sent


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_frames_or_a_frame_error(pieces: list[bytes]) -> None:
    splitter = frames.Splitter()
    try:
        for piece in pieces:
            for kind, payload in splitter.feed(piece):
                assert frames.REQUEST <= kind <= frames.LOGGED
                assert len(payload) <= frames.MAX_JSON
    except frames.FrameError:
        return


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        (0, 0),
        (frames.LOGGED + 1, 0),
        (255, 1),
        (frames.STDIN, frames.MAX_PAYLOAD + 1),
        (frames.REQUEST, frames.MAX_JSON + 1),
    ],
)
def test_unknown_kinds_and_sizes_are_refused_before_the_payload_comes(
    kind: int, length: int
) -> None:
    with pytest.raises(frames.FrameError):
        frames.Splitter().feed(frames.HEADER.pack(kind, length))


def test_largest_frames_pass() -> None:
    payload = bytes(frames.MAX_PAYLOAD)
    assert frames.Splitter().feed(frames.pack(frames.STDIN, payload)) == [(frames.STDIN, payload)]
