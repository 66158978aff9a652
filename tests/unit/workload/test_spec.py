"""Specs are checked, and come back from disk as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.workload import files, naming
from agent.workload.process import explain
from agent.workload.spec import WorkloadSpec, decode_spec, encode_spec, validate
from swarm.errors import InvalidArgumentError

SPEC = WorkloadSpec(
    id="0123456789abcdef" * 4,
    name="web-1",
    argv=("sh", "-c", "echo hi"),
    env={"A": "b=c", "EMPTY": ""},
    cwd="/srv",
    hostname="box",
    tty=True,
    stdin_open=True,
    networks=("n1", "n2"),
    labels={"l": "v"},
    created_at=12.5,
    auto_remove=True,
    dns_search=("example.org",),
    extra_hosts=(("192.0.2.1", "peer other"),),
)


def test_spec_survives_the_disk() -> None:
    assert decode_spec(encode_spec(SPEC)) == SPEC


def test_host_name_is_the_short_id_by_default() -> None:
    spec = replace(SPEC, hostname="")
    assert spec.effective_hostname == "0123456789ab"
    assert json.loads(encode_spec(spec))["hostname"] == "0123456789ab"


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "abc"},
        {"id": "A" * 64},
        {"name": ""},
        {"name": "-x"},
        {"name": "a/b"},
        {"name": "x" * 129},
        {"argv": ()},
        {"argv": ("",)},
        {"argv": ("a\0b",)},
        {"argv": ("x" * 600_000,)},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"env": {"A": "\0"}},
        {"cwd": "relative"},
        {"cwd": ""},
        {"hostname": "-box"},
        {"hostname": "b x"},
        {"hostname": "x" * 64},
        {"dns_search": ("a b",)},
        {"dns_options": ("ndots:0\nnameserver 192.0.2.1",)},
        {"extra_hosts": (("192.0.2.1", "a\n192.0.2.2 b"),)},
        {"extra_hosts": (("192.0.2.1 x", "a"),)},
    ],
)
def test_impossible_specs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        validate(replace(SPEC, **wrong))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"unknown": 1}', encode_spec(SPEC)[:-1] + ', "x": 1}']
)
def test_unreadable_specs_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        decode_spec(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_a_spec_or_refused(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(json.loads(encode_spec(SPEC)) | {"argv": value})):
        try:
            decode_spec(text)
        except InvalidArgumentError:
            continue


def test_resolv_conf_names_the_nodes_own_server_only() -> None:
    assert files.resolv_conf((), ()) == "nameserver 127.0.0.11\n"
    assert files.resolv_conf(("a.org", "b.org"), ("ndots:0", "timeout:1")) == (
        "nameserver 127.0.0.11\nsearch a.org b.org\noptions ndots:0 timeout:1\n"
    )


def test_hosts_file_ends_with_the_workloads_own_addresses() -> None:
    lines = files.hosts("box", ("10.0.0.7", "fd00::7"), (("192.0.2.1", "peer"),)).splitlines()
    assert lines[0] == "127.0.0.1\tlocalhost"
    assert lines[-3:] == ["192.0.2.1\tpeer", "10.0.0.7\tbox", "fd00::7\tbox"]


def test_generated_names_are_valid_and_free() -> None:
    rng = Random(4)
    taken: set[str] = set()
    for _ in range(2000):
        name = naming.generate_name(rng, taken)
        validate(replace(SPEC, name=name))
        assert name not in taken
        taken.add(name)


def test_with_every_plain_name_taken_a_name_gets_a_number() -> None:
    plain = {f"{a}_{n}" for a in naming.ADJECTIVES for n in naming.NOUNS}
    name = naming.generate_name(Random(1), plain)
    assert name[-1].isdigit()
    assert name not in plain


def test_word_lists_hold_plain_words_once() -> None:
    for words in (naming.ADJECTIVES, naming.NOUNS):
        assert len(set(words)) == len(words) > 50
        assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


@pytest.mark.parametrize(
    ("command", "error", "expected"),
    [
        (
            "x",
            FileNotFoundError(2, "No such file"),
            (127, 'exec: "x": executable file not found in $PATH'),
        ),
        (
            "./x",
            FileNotFoundError(2, "No such file"),
            (127, 'exec: "./x": stat ./x: no such file or directory'),
        ),
        ("x", PermissionError(13, "Permission denied"), (126, 'exec: "x": permission denied')),
        ("x", OSError(8, "Exec format error"), (126, 'exec: "x": exec format error')),
    ],
)
def test_reasons_not_to_start_are_told_as_docker_tells_them(
    command: str, error: OSError, expected: tuple[int, str]
) -> None:
    assert explain(command, error) == expected
