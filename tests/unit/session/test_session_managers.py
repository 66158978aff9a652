"""The choice among managers."""
# the names say what is expected

from __future__ import annotations

import random
from collections import Counter

import pytest

from agent.session.managers import FAILURE, SUCCESS, ManagerList
from swarm.model import Peer, WeightedPeer

A, B = Peer(node_id="a", addr="192.0.2.1:2377"), Peer(node_id="b", addr="192.0.2.2:2377")


def test_observations_are_smoothed_by_half() -> None:
    managers = ManagerList([A])
    managers.observe(A, FAILURE)
    assert managers.weight(A) == pytest.approx(0.0)
    managers.observe(A, FAILURE)
    assert managers.weight(A) == pytest.approx(-5.0)
    managers.observe(A, SUCCESS)
    assert managers.weight(A) == pytest.approx(2.5)


def test_a_sick_manager_is_asked_rarely_but_not_never() -> None:
    managers = ManagerList([A, B])
    for _ in range(10):
        managers.observe(A, FAILURE)
    rng = random.Random(3)
    chosen = Counter(managers.choose(rng) for _ in range(2000))
    assert 0 < chosen[A] < chosen[B] / 5


def test_an_unknown_manager_cannot_be_observed_in() -> None:
    managers = ManagerList([A])
    managers.observe(B, SUCCESS)
    assert managers.peers == (A,)


def test_nobody_to_choose_from() -> None:
    assert ManagerList().choose(random.Random(1)) is None


def test_replacing_keeps_what_was_learned_and_says_whether_the_set_changed() -> None:
    managers = ManagerList([A])
    managers.observe(A, FAILURE)
    assert managers.replace([WeightedPeer(peer=A, weight=10), WeightedPeer(peer=B, weight=10)])
    assert managers.weight(A) == pytest.approx(5.0)
    assert not managers.replace([WeightedPeer(peer=B, weight=10), WeightedPeer(peer=A, weight=10)])
    assert not managers.replace([])
    assert set(managers.peers) == {A, B}
