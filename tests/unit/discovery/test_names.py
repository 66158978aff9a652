"""The name table against the rules of libnetwork, and against a slow oracle."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.discovery.names import Family, IPAddress, NameRecord, NameTable, fold, parse_address

NETWORKS = ("n1", "n2")


def task(number: int, *, vip: str = "10.0.1.2", **changes: object) -> NameRecord:
    record = NameRecord(
        name=f"db.{number}.x{number}",
        addresses=(ip_address(f"10.0.1.{number}"),),
        service_name="db",
        service_id="s1",
        virtual_ips=(ip_address(vip),) if vip else (),
        aliases=("database",),
        task_aliases=(f"c{number}",),
    )
    return replace(record, **changes)  # type: ignore[arg-type]


@pytest.fixture
def table() -> NameTable:
    names = NameTable()
    names.set_network("n1", "backend")
    names.set_network("n2", "Front.End")
    return names


def ask(
    table: NameTable, name: str, family: Family = "A", networks: tuple[str, ...] = NETWORKS
) -> list[str] | None:
    found = table.lookup(networks, name, family)
    return [str(a) for a in found.addresses] if found.known else None


def test_service_name_and_alias_give_the_virtual_address(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.put("n1", "e2", task(12))
    assert ask(table, "db") == ask(table, "database") == ["10.0.1.2"]


def test_tasks_prefix_gives_every_task(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.put("n1", "e2", task(12))
    assert ask(table, "tasks.db") == ask(table, "tasks.database") == ["10.0.1.11", "10.0.1.12"]


def test_without_a_virtual_address_the_service_name_gives_every_task(table: NameTable) -> None:
    table.put("n1", "e1", task(11, vip=""))
    table.put("n1", "e2", task(12, vip=""))
    assert ask(table, "db") == ["10.0.1.11", "10.0.1.12"]


def test_container_name_and_task_alias_give_the_one_task(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    assert ask(table, "db.11.x11") == ask(table, "c11") == ["10.0.1.11"]


def test_plain_container_has_no_service_names(table: NameTable) -> None:
    table.put("n1", "e1", task(11, service_id=""))
    assert ask(table, "db.11.x11") == ["10.0.1.11"]
    assert ask(table, "db") is None
    assert ask(table, "tasks.db") is None


@pytest.mark.parametrize("name", ["DB", "Db.", "db.BACKEND", "db.backend."])
def test_case_and_final_dot_do_not_matter(table: NameTable, name: str) -> None:
    table.put("n1", "e1", task(11))
    assert ask(table, name) == ["10.0.1.2"]


def test_name_dot_network_asks_that_network_only(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.put("n2", "e2", task(21, vip="10.0.2.2"))
    assert ask(table, "db.backend") == ["10.0.1.2"]
    assert ask(table, "db.front.end") == ["10.0.2.2"]
    assert ask(table, "tasks.db.front.end") == ["10.0.1.21"]
    assert ask(table, "db.nowhere") is None


def test_first_network_in_the_containers_order_answers_alone(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.put("n2", "e2", task(21, vip="10.0.2.2"))
    assert ask(table, "db", networks=("n1", "n2")) == ["10.0.1.2"]
    assert ask(table, "db", networks=("n2", "n1")) == ["10.0.2.2"]


def test_a_whole_name_wins_over_name_dot_network(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.put("n2", "e2", NameRecord(name="db.backend", addresses=(ip_address("10.0.2.9"),)))
    assert ask(table, "db.backend") == ["10.0.2.9"]


def test_other_networks_names_are_not_seen(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    assert ask(table, "db", networks=("n2",)) is None
    assert ask(table, "db.backend", networks=("n2",)) is None


def test_known_name_without_the_family_is_known_and_empty(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    assert ask(table, "db", "AAAA") == []


def test_both_families_are_served(table: NameTable) -> None:
    both = (ip_address("10.0.1.11"), ip_address("fd00::11"))
    table.put("n1", "e1", task(11, vip="", addresses=both))
    assert ask(table, "db") == ["10.0.1.11"]
    assert ask(table, "db", "AAAA") == ["fd00::11"]


def test_draining_task_loses_its_names_but_not_the_virtual_address(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.put("n1", "e1", task(11, disabled=True))
    assert ask(table, "db") == ["10.0.1.2"]
    assert ask(table, "tasks.db") is None
    assert ask(table, "db.11.x11") is None
    table.remove("n1", "e1")
    assert ask(table, "db") is None


def test_draining_task_leaves_round_robin(table: NameTable) -> None:
    table.put("n1", "e1", task(11, vip=""))
    table.put("n1", "e2", task(12, vip="", disabled=True))
    assert ask(table, "db") == ["10.0.1.11"]


def test_switch_to_round_robin_does_not_answer_the_old_virtual_address(table: NameTable) -> None:
    table.put("n1", "e1", task(11, disabled=True))
    table.put("n1", "e2", task(12, vip=""))
    assert ask(table, "db") == ["10.0.1.12"]


def test_service_made_again_under_its_name_gives_one_virtual_address(table: NameTable) -> None:
    table.put("n1", "e1", task(11, disabled=True))
    table.put("n1", "e2", task(12, vip="10.0.1.3", service_id="s2"))
    assert ask(table, "db") == ["10.0.1.3"]


def test_local_record_wins_over_gossip_until_it_goes(table: NameTable) -> None:
    table.put("n1", "e1", task(11), local=True)
    table.put("n1", "e1", task(12))
    assert ask(table, "tasks.db") == ["10.0.1.11"]
    table.remove("n1", "e1")
    assert ask(table, "tasks.db") == ["10.0.1.11"]
    table.put("n1", "e1", task(12))
    table.remove("n1", "e1", local=True)
    assert ask(table, "tasks.db") == ["10.0.1.12"]


def test_reverse_gives_name_dot_network(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    assert table.reverse(NETWORKS, ip_address("10.0.1.11")) == "db.11.x11.backend"
    assert table.reverse(NETWORKS, ip_address("10.0.1.2")) == "db.backend"
    assert table.reverse(("n2",), ip_address("10.0.1.11")) is None
    table.remove("n1", "e1")
    assert table.reverse(NETWORKS, ip_address("10.0.1.11")) is None
    assert table.reverse(NETWORKS, ip_address("10.0.1.2")) is None


def test_ingress_has_no_names(table: NameTable) -> None:
    table.set_network("n1", "ingress", ingress=True)
    table.put("n1", "e1", task(11))
    assert ask(table, "db") is None
    assert ask(table, "db.ingress") is None
    assert table.reverse(NETWORKS, ip_address("10.0.1.11")) is None


def test_removed_network_takes_its_names_along(table: NameTable) -> None:
    table.put("n1", "e1", task(11))
    table.remove_network("n1")
    table.remove("n1", "e1")
    assert ask(table, "db") is None


def test_answers_come_in_random_order(table: NameTable) -> None:
    for number in range(1, 30):
        table.put("n1", f"e{number}", task(number, vip=""))
    rng = Random(1)
    orders = {table.lookup(NETWORKS, "db", "A", rng).addresses for _ in range(5)}
    assert len(orders) == 5
    assert all(len(order) == 29 for order in orders)


@pytest.mark.slow
def test_lookup_among_ten_thousand_names_costs_no_more_than_among_ten() -> None:
    def cost(size: int) -> float:
        table = NameTable()
        table.set_network("n1", "net")
        for number in range(size):
            address = ip_address((10 << 24) + number)
            record = NameRecord(
                name=f"c{number}",
                addresses=(address,),
                service_name="big",
                service_id="s1",
                virtual_ips=(ip_address("10.255.0.1"),),
            )
            table.put("n1", f"e{number}", record)
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            for number in range(200):
                assert table.lookup(("n1",), f"c{number % 10}", "A").known
                assert len(table.lookup(("n1",), "big", "A").addresses) == 1
            best = min(best, time.perf_counter() - start)
        return best

    # Linear growth would show as a factor of 1000.
    assert cost(10_000) < 20 * cost(10)


@pytest.mark.parametrize("text", ["<nil>", "", "10.0.0.1/24", "nonsense", "1.2.3"])
def test_unreadable_virtual_address_is_none(text: str) -> None:
    assert parse_address(text) is None


def test_readable_addresses_of_both_families() -> None:
    assert parse_address("10.0.0.1") == ip_address("10.0.0.1")
    assert parse_address("fd00::1") == ip_address("fd00::1")


LABELS = st.sampled_from(["a", "b", "A", "tasks.a", "a.backend", "c"])
ADDRESSES = st.sampled_from([ip_address(t) for t in ("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2")])
RECORDS = st.builds(
    NameRecord,
    name=LABELS,
    addresses=st.lists(ADDRESSES, min_size=1, max_size=2, unique=True).map(tuple),
    service_name=LABELS,
    service_id=st.sampled_from(["", "s1", "s2"]),
    virtual_ips=st.lists(ADDRESSES, max_size=2, unique=True).map(tuple),
    aliases=st.lists(LABELS, max_size=2).map(tuple),
    task_aliases=st.lists(LABELS, max_size=2).map(tuple),
    disabled=st.booleans(),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(NETWORKS),
        st.sampled_from(["e1", "e2", "e3"]),
        st.booleans(),
        st.none() | RECORDS,
    ),
    max_size=12,
)


def slow(records: list[NameRecord], name: str) -> set[IPAddress]:
    """Work out a name's addresses on one network straight from the rules."""
    found: set[IPAddress] = set()
    draining: set[IPAddress] = set()
    for service in {r.service_id for r in records}:
        virtual: set[IPAddress] = set()
        robin: set[IPAddress] = set()
        for r in (r for r in records if r.service_id == service):
            names = {fold(n) for n in (r.service_name, *r.aliases)} if service else set()
            if not r.disabled and name in {fold(n) for n in (r.name, *r.task_aliases)}:
                found |= set(r.addresses)
            if not r.disabled and name in {f"tasks.{n}" for n in names}:
                robin |= set(r.addresses)
            if name in names:
                if r.virtual_ips:
                    (draining if r.disabled else virtual).update(r.virtual_ips)
                elif not r.disabled:
                    robin |= set(r.addresses)
        found |= virtual or robin
    return found or draining


@given(STEPS)
@settings(max_examples=200)
def test_table_agrees_with_the_rules_after_any_history(
    steps: list[tuple[str, str, bool, NameRecord | None]],
) -> None:
    table = NameTable()
    table.set_network("n1", "backend")
    table.set_network("n2", "other")
    layers: dict[tuple[str, bool], dict[str, NameRecord]] = {}
    for network, endpoint, local, record in steps:
        layer = layers.setdefault((network, local), {})
        if record is None:
            table.remove(network, endpoint, local=local)
            layer.pop(endpoint, None)
        else:
            table.put(network, endpoint, record, local=local)
            layer[endpoint] = record
    for network in NETWORKS:
        merged = {**layers.get((network, False), {}), **layers.get((network, True), {})}
        for name in ("a", "b", "c", "tasks.a", "tasks.b", "tasks.tasks.a", "a.backend"):
            expected = slow(list(merged.values()), name)
            if name == "a.backend" and network == "n1" and not expected:
                expected = slow(list(merged.values()), "a")
            for family, version in (("A", 4), ("AAAA", 6)):
                found = table.lookup((network,), name, family)  # type: ignore[arg-type]
                assert found.known == bool(expected)
                assert set(found.addresses) == {a for a in expected if a.version == version}


@given(STEPS)
def test_taking_everything_back_leaves_nothing(
    steps: list[tuple[str, str, bool, NameRecord | None]],
) -> None:
    table = NameTable()
    for network, endpoint, local, record in steps:
        if record is not None:
            table.put(network, endpoint, record, local=local)
    for network, endpoint, _, _ in steps:
        for local in (True, False):
            table.remove(network, endpoint, local=local)
    for left in table._networks.values():
        assert not left.names
        assert not left.hosts
        assert not left.virtuals
