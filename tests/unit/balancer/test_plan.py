"""Plans, carried out by an interpreter of the few nft commands they use."""

from __future__ import annotations

import ipaddress
import re

from hypothesis import given
from hypothesis import strategies as st

from agent.balancer import ruleset
from agent.balancer.planner import Applied, plan
from agent.balancer.table import Front, IPAddress, Slots

VIPS: list[IPAddress] = [
    *(ipaddress.ip_address(f"10.0.1.{200 + i}") for i in range(3)),
    ipaddress.ip_address("fd00:1::200"),
]


def backends(vip: IPAddress, numbers: list[int], *, sticky: bool = False) -> Slots:
    base = "10.0.1." if vip.version == 4 else "fd00:1::"
    backs = tuple(ipaddress.ip_address(f"{base}{number}") for number in numbers)
    return Slots(backs, sticky and bool(backs))


class Table:
    """Sets and maps by name; adding what is there or deleting what is not fails, as in the kernel.

    (The kernel lets an element be added twice if it is the same; a plan must not need that.)
    """

    def __init__(self) -> None:
        self.elements: dict[str, dict[str, str]] = {}
        self.chains: set[str] = set()

    def run(self, commands: str) -> None:
        for line in commands.split("\n"):
            words = line.split(" ", 5)
            match words:
                case [_, "table", *_]:
                    self.elements.clear()
                    self.chains.clear()
                case ["add", "chain", _, _, name, *_]:
                    assert name not in self.chains
                    self.chains.add(name)
                case ["add", "set" | "map", _, _, name, *_]:
                    self.elements[name] = {}
                case ["add", "rule", *_]:
                    pass
                case [verb, "element", _, _, name, text]:
                    for item in text.strip("{} ").split(", "):
                        key, _, value = item.partition(" : ")
                        if verb == "add":
                            assert key not in self.elements[name], line
                            self.elements[name][key] = value
                            for chain in re.findall(r"goto (\S+)", value):
                                assert chain in self.chains
                        else:
                            del self.elements[name][key]
                case _:
                    raise AssertionError(line)

    def pick(self, vip: IPAddress) -> Slots | None:
        """Return what the rules would choose from."""
        version = vip.version
        if str(vip) not in self.elements[f"known{version}"]:
            assert str(vip) not in self.elements[f"vips{version}"]
            return None
        verdict = self.elements[f"vips{version}"].get(str(vip))
        size = 0 if verdict is None else int(verdict.rpartition("-")[2])
        slots = self.elements[f"slots{version}"]
        found = tuple(ipaddress.ip_address(slots[f"{vip} . {number}"]) for number in range(size))
        assert len([key for key in slots if key.startswith(f"{vip} .")]) == size, "nothing is left"
        return Slots(found, bool(verdict) and "hash" in str(verdict))


pools = st.one_of(
    st.none(), st.tuples(st.lists(st.integers(1, 9), max_size=5, unique=True), st.booleans())
)
history = st.lists(
    st.dictionaries(st.sampled_from(VIPS), pools, min_size=1, max_size=4), min_size=1, max_size=8
)


@given(history)
def test_the_table_always_ends_as_wanted(
    changes: list[dict[IPAddress, tuple[list[int], bool] | None]],
) -> None:
    """Any history of services; the same wish once more changes nothing."""
    table, applied, model = Table(), None, dict[Front, Slots | None]()
    for change in changes:
        wanted: dict[Front, Slots | None] = {
            vip: None if pool is None else backends(vip, pool[0], sticky=pool[1])
            for vip, pool in change.items()
        }
        model.update(wanted)
        made = plan(ruleset, applied, wanted, {})
        if made.commands:
            table.run(made.commands)
        applied = applied or Applied()
        applied.take(made)
        for vip in VIPS:
            assert table.pick(vip) == model.get(vip)
        assert applied.slots == {vip: slots for vip, slots in model.items() if slots is not None}
        again = plan(ruleset, applied, wanted, {})
        assert (again.commands, again.appeared) == ("", frozenset())


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=20))
def test_hairpins_follow(steps: list[tuple[int, bool]]) -> None:
    """A local backend meets itself under the router's address while it is here."""
    router = ipaddress.ip_address("10.0.1.1")
    first = plan(ruleset, None, {}, {})
    table, applied = Table(), Applied()
    table.run(first.commands)
    here = set[IPAddress]()
    for number, on in steps:
        ip = ipaddress.ip_address(f"10.0.1.{number}")
        (here.add if on else here.discard)(ip)
        made = plan(ruleset, applied, {}, {ip: router if on else None})
        if made.commands:
            table.run(made.commands)
        applied.take(made)
        assert table.elements["self4"] == {f"{each} . {each}": str(router) for each in here}


def test_one_more_backend_is_a_few_elements_whatever_else_there_is() -> None:
    """The transaction for one service among many is that of one service alone."""
    texts = []
    for others in (0, 1000):
        applied = Applied()
        many: dict[Front, Slots | None] = {
            ipaddress.ip_address(int(ipaddress.ip_address("10.9.0.0")) + i): backends(
                VIPS[0], [1, 2, 3]
            )
            for i in range(others)
        }
        applied.take(plan(ruleset, None, {**many, VIPS[0]: backends(VIPS[0], [1, 2])}, {}))
        applied.sizes.add(("4", 3, False))
        texts.append(plan(ruleset, applied, {VIPS[0]: backends(VIPS[0], [1, 2, 3])}, {}).commands)
    assert texts[0] == texts[1]
    assert texts[0].count("\n") <= 3
