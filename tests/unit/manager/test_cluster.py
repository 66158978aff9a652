"""The cluster object: defaults, keys, removed nodes, what clients may see."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.cluster import (
    KEYS_PER_SUBSYSTEM,
    SUBSYSTEMS,
    NetworkKeys,
    blacklisted,
    new_cluster,
    new_network_keys,
    new_node,
    redacted,
    rotated,
    unlock_key,
    without_expired,
)
from manager.config import ManagerConfig
from swarm.api import codec
from swarm.identity.certs import Role, RootCA, new_key_and_csr, new_root
from swarm.identity.token import JoinToken, matches_root
from swarm.model import Cluster, NodeAvailability, NodeMembership, NodeRole

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = ManagerConfig(advertise_addr="192.0.2.1:2377")


def entropy() -> Callable[[int], bytes]:
    """Return bytes that count up: no two calls give the same."""
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


@pytest.fixture(scope="module")
def root() -> RootCA:
    """A root CA."""
    return new_root(NOW)


def make(root: RootCA, config: ManagerConfig = CONFIG) -> Cluster:
    return new_cluster(config, cluster_id="c" * 25, root=root, entropy=entropy())


class TestDefaults:
    def test_a_new_cluster_has_swarms_defaults(self, root: RootCA) -> None:
        cluster = make(root)
        spec = cluster.spec
        assert spec.annotations.name == "default"
        assert spec.orchestration.task_history_retention_limit == 5
        assert spec.dispatcher.heartbeat_period == 5 * 10**9
        assert spec.ca_config.node_cert_expiry == 90 * 86400 * 10**9
        raft = spec.raft
        assert (raft.snapshot_interval, raft.keep_old_snapshots) == (10_000, 0)
        assert (raft.log_entries_for_slow_followers, raft.heartbeat_tick, raft.election_tick) == (
            500,
            1,
            10,
        )
        assert cluster.default_address_pool == ("10.0.0.0/8",)
        assert (cluster.subnet_size, cluster.vxlan_udp_port) == (24, 4789)
        assert unlock_key(cluster) is None
        assert cluster.root_ca.ca_cert_hash.startswith("sha256:")

    def test_the_tokens_pin_the_root_and_differ(self, root: RootCA) -> None:
        tokens = make(root).root_ca.join_tokens
        assert tokens.worker != tokens.manager
        for text in (tokens.worker, tokens.manager):
            assert matches_root(JoinToken.parse(text), root.cert_pem)

    def test_autolock_makes_a_key(self, root: RootCA) -> None:
        key = unlock_key(make(root, replace(CONFIG, autolock=True)))
        assert key is not None
        assert len(key) == 32

    def test_a_node_copies_the_clusters_port(self, root: RootCA) -> None:
        cluster = make(root, replace(CONFIG, data_path_port=4790))
        node = new_node(
            cluster,
            node_id="n",
            role=NodeRole.WORKER,
            availability=NodeAvailability.PAUSE,
            csr=b"csr",
            certificate=b"cert",
        )
        assert node.vxlan_udp_port == 4790
        assert node.spec.membership is NodeMembership.ACCEPTED
        assert node.certificate.csr == b"csr"


class TestKeys:
    def test_three_of_each_with_distinct_lamport_times(self) -> None:
        keys = new_network_keys(entropy())
        times = [key.lamport_time for key in keys.keys]
        assert len(set(times)) == 6
        assert keys.clock == max(times) + 1
        assert {len(key.key) for key in keys.keys} == {16}
        assert len({key.key for key in keys.keys}) == 6

    @given(st.binary(min_size=2, max_size=2))
    def test_the_clock_starts_in_sixteen_bits(self, start: bytes) -> None:
        keys = new_network_keys(lambda size: start if size == 2 else bytes(size))
        assert keys.keys[0].lamport_time == int.from_bytes(start, "big")

    def test_a_rotation_drops_the_oldest_and_adds_one(self) -> None:
        keys, source = new_network_keys(entropy()), entropy()
        for _ in range(5):
            after = rotated(keys, source)
            for subsystem in SUBSYSTEMS:
                old = _times(keys, subsystem)
                new = _times(after, subsystem)
                assert len(new) == KEYS_PER_SUBSYSTEM
                # The middle key, which encrypts, is the newest of before: everybody has it.
                assert new[:2] == old[1:]
                assert new[2] > old[2]
            keys = after


def _times(keys: NetworkKeys, subsystem: str) -> list[int]:
    return sorted(key.lamport_time for key in keys.keys if key.subsystem == subsystem)


class TestRemoved:
    def test_refused_until_a_week_after_expiry(self, root: RootCA) -> None:
        cluster = make(root)
        _, csr = new_key_and_csr()
        certificate = root.issue(csr, node_id="n", cluster_id=cluster.id, role=Role.WORKER, now=NOW)
        node = new_node(
            cluster,
            node_id="n",
            role=NodeRole.WORKER,
            availability=NodeAvailability.ACTIVE,
            csr=csr,
            certificate=certificate,
        )
        listed = blacklisted(cluster, node, 0)
        expiry = NOW + timedelta(days=90) + timedelta(days=7)
        assert listed.blacklisted_certificates["n"].expiry == int(expiry.timestamp()) * 10**9
        before = int(expiry.timestamp()) * 10**9 - 1
        assert without_expired(listed, before) is listed
        assert without_expired(listed, before + 1).blacklisted_certificates == {}


def test_a_redacted_cluster_holds_no_secret_but_the_tokens(root: RootCA) -> None:
    cluster = make(root, replace(CONFIG, autolock=True))
    assert root.key_pem is not None
    key = unlock_key(cluster)
    assert key is not None
    raw = codec.dumps(redacted(cluster))
    secrets = [root.key_pem, key, *(each.key for each in cluster.network_bootstrap_keys)]
    assert all(secret in codec.dumps(cluster) for secret in secrets)
    assert not any(secret in raw for secret in secrets)
    assert cluster.root_ca.join_tokens.worker.encode() in raw


def test_a_redacted_cluster_shows_the_defaults_in_force() -> None:
    shown = redacted(Cluster(id="c"))
    assert shown.default_address_pool == ("10.0.0.0/8",)
    assert (shown.subnet_size, shown.vxlan_udp_port) == (24, 4789)
