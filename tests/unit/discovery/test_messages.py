"""Queries and replies as bytes: what is asked, what is answered, and what hostile packets get."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rrset
import dns.tsig
import dns.tsigkeyring
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.discovery import wire
from agent.discovery.answers import answer
from agent.discovery.names import NameRecord, NameTable
from swarm.errors import WireError

NETWORKS = ("n1",)


def make_table(tasks: int = 2) -> NameTable:
    table = NameTable(ttl=7)
    table.set_network("n1", "backend")
    for number in range(tasks):
        record = NameRecord(
            name=f"db.{number}",
            addresses=(ip_address((10 << 24) + number + 1),),
            service_name="db",
            service_id="s1",
        )
        table.put("n1", f"e{number}", record)
    return table


TABLE = make_table()


def ask(
    name: str, kind: str = "A", *, table: NameTable = TABLE, tcp: bool = False, edns: int = -1
) -> dns.message.Message | None:
    message = dns.message.make_query(name, kind, use_edns=edns, payload=1232)
    query = wire.parse_query_untrusted(message.to_wire())
    limit = wire.MAX_MESSAGE if tcp else query.udp_limit
    data = answer(query, table, NETWORKS, Random(1), limit)
    if data is None:
        return None
    assert len(data) <= limit
    reply = dns.message.from_wire(data)
    assert message.is_response(reply)
    assert reply.flags & dns.flags.RA
    return reply


def texts(reply: dns.message.Message | None) -> list[str]:
    assert reply is not None
    return sorted(str(record) for rrset in reply.answer for record in rrset)


def test_known_name_is_answered_with_its_addresses_and_the_tables_ttl() -> None:
    reply = ask("db.")
    assert texts(reply) == ["10.0.0.1", "10.0.0.2"]
    assert reply is not None
    assert reply.answer[0].ttl == 7
    assert reply.flags & dns.flags.AA


@pytest.mark.parametrize("kind", ["AAAA", "MX", "TXT", "SRV", "HTTPS", "ANY"])
def test_known_name_without_that_type_is_nodata_and_never_forwarded(kind: str) -> None:
    reply = ask("db.backend", kind)
    assert texts(reply) == []
    assert reply is not None
    assert reply.rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("kind", ["A", "AAAA", "MX", "TXT", "HTTPS"])
@pytest.mark.parametrize("name", ["nosuch", "tasks.nosuch", "NoSuch."])
def test_unknown_internal_looking_names_never_leave(name: str, kind: str) -> None:
    reply = ask(name, kind)
    assert reply is not None
    assert reply.rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("example.org", "A"),
        (".", "NS"),
        ("9.9.9.9.in-addr.arpa", "PTR"),
        ("db.other", "A"),
        ("example.org", "PTR"),
    ],
)
def test_everything_else_is_forwarded(name: str, kind: str) -> None:
    assert ask(name, kind) is None


def test_pointer_to_a_known_address() -> None:
    assert texts(ask("1.0.0.10.in-addr.arpa", "PTR")) == ["db.0.backend."]


def test_pointer_to_a_name_that_dns_cannot_hold_is_nodata() -> None:
    table = NameTable()
    table.put("n1", "e1", NameRecord(name="x" * 70, addresses=(ip_address("10.0.0.9"),)))
    reply = ask("9.0.0.10.in-addr.arpa", "PTR", table=table)
    assert texts(reply) == []


def test_long_answer_over_udp_is_cut_with_tc_set() -> None:
    reply = ask("db", table=make_table(200))
    assert reply is not None
    assert reply.flags & dns.flags.TC
    assert 20 <= len(texts(reply)) < 200


def test_long_answer_over_tcp_is_whole() -> None:
    reply = ask("db", table=make_table(2000), tcp=True)
    assert reply is not None
    assert not reply.flags & dns.flags.TC
    assert len(texts(reply)) == 2000


@pytest.mark.parametrize("edns", [-1, 0])
@pytest.mark.parametrize("name", ["db", "DB.backend.", "db.backend"])
@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_packed_answers_are_what_dnspython_would_write(name: str, kind: str, edns: int) -> None:
    table = NameTable()
    table.set_network("n1", "backend")
    both = (ip_address("10.0.0.1"), ip_address("fd00::1"))
    table.put("n1", "e1", NameRecord(name="db", addresses=both))
    message = dns.message.make_query(name, kind, use_edns=edns)
    query = wire.parse_query_untrusted(message.to_wire())
    data = answer(query, table, NETWORKS, Random(1), 512)
    expected = dns.message.make_response(message, recursion_available=True, our_payload=4096)
    expected.flags |= dns.flags.AA
    text = "10.0.0.1" if kind == "A" else "fd00::1"
    owner = message.question[0].name
    expected.answer.append(dns.rrset.from_text(owner, table.ttl, "IN", kind, text))
    assert data == expected.to_wire()


def test_edns_client_gets_more_and_an_opt_back() -> None:
    reply = ask("db", table=make_table(70), edns=0)
    assert reply is not None
    assert len(texts(reply)) == 70
    assert reply.edns == 0


def test_class_chaos_is_refused() -> None:
    query = wire.parse_query_untrusted(
        dns.message.make_query("version.bind", "TXT", "CH").to_wire()
    )
    reply = dns.message.from_wire(answer(query, TABLE, NETWORKS, Random(1), 512) or b"")
    assert reply.rcode() == dns.rcode.REFUSED


def refused(data: bytes) -> int:
    with pytest.raises(wire.BadQueryError) as caught:
        wire.parse_query_untrusted(data)
    assert caught.value.reply[:2] == data[:2]
    return dns.message.from_wire(caught.value.reply).rcode()


def test_other_opcodes_are_not_implemented() -> None:
    message = dns.message.make_query("db", "A")
    message.set_opcode(dns.opcode.NOTIFY)
    assert refused(message.to_wire()) == dns.rcode.NOTIMP


def test_several_questions_are_a_format_error() -> None:
    message = dns.message.make_query("db", "A")
    message.question += dns.message.make_query("db", "AAAA").question
    assert refused(message.to_wire()) == dns.rcode.FORMERR


def test_future_edns_version_is_told_the_highest_known() -> None:
    message = dns.message.make_query("db", "A", use_edns=0)
    data = bytearray(message.to_wire())
    data[-5] = 1  # the version byte of an OPT record without options
    assert refused(bytes(data)) == dns.rcode.BADVERS


def test_signed_query_with_an_unknown_key_is_refused() -> None:
    message = dns.message.make_query("db", "A")
    message.use_tsig(dns.tsigkeyring.from_text({"k.": "MTIzNA=="}), "k.")
    assert refused(message.to_wire()) == dns.rcode.FORMERR


def test_responses_and_fragments_of_headers_get_silence() -> None:
    response = dns.message.make_response(dns.message.make_query("db", "A")).to_wire()
    for data in (response, b"", b"\0" * 11):
        with pytest.raises(wire.NotAQueryError):
            wire.parse_query_untrusted(data)


VALID = dns.message.make_query("db.backend", "A", use_edns=0).to_wire()
LOOP = VALID[:12] + b"\xc0\x0c\x00\x01\x00\x01"


@given(st.binary(max_size=200) | st.builds(bytes.__add__, st.just(VALID[:4]), st.binary()))
@example(LOOP)
@example(VALID[:12] + b"\xff" * 60)
def test_any_bytes_are_a_query_or_a_wire_error(data: bytes) -> None:
    check(data)


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6))
def test_any_damage_to_a_valid_query_is_met_without_a_crash(damage: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, value in damage:
        data[position] = value
    check(bytes(data))


def check(data: bytes) -> None:
    try:
        query = wire.parse_query_untrusted(data)
    except wire.BadQueryError as error:
        dns.message.from_wire(error.reply)  # raises if it is no message
        return
    except WireError:
        return
    reply = answer(query, TABLE, NETWORKS, Random(1), 512)
    if reply is not None:
        assert len(reply) <= 512
        dns.message.from_wire(reply)


@given(st.binary(max_size=100), st.integers(0, 65535))
def test_any_upstream_bytes_are_a_reply_or_a_wire_error(data: bytes, identity: int) -> None:
    query = wire.parse_query_untrusted(VALID)
    for hostile in (data, identity.to_bytes(2, "big") + b"\x80" + data):
        try:
            wire.upstream_code_untrusted(hostile, query, identity)
        except WireError:
            continue


def test_upstream_reply_must_match_identity_and_question() -> None:
    query = wire.parse_query_untrusted(dns.message.make_query("example.org", "A", id=77).to_wire())
    good = dns.message.make_response(query.message).to_wire()
    assert wire.upstream_code_untrusted(good, query, 77) == 0
    with pytest.raises(WireError):
        wire.upstream_code_untrusted(good, query, 78)
    with pytest.raises(WireError):
        wire.upstream_code_untrusted(query.data, query, 77)
    other = dns.message.make_response(dns.message.make_query("example.com", "A", id=77)).to_wire()
    with pytest.raises(WireError):
        wire.upstream_code_untrusted(other, query, 77)


def test_upstream_reply_too_long_for_the_client_is_cut_to_its_question() -> None:
    query = wire.parse_query_untrusted(dns.message.make_query("example.org", "TXT").to_wire())
    cut = dns.message.from_wire(wire.clip(b"\0" * 600, query, 512))
    assert cut.flags & dns.flags.TC
    assert cut.question == query.message.question
    assert wire.clip(b"\0" * 512, query, 512) == b"\0" * 512
