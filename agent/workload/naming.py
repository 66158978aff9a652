"""Names for workloads that were given none: an adjective and a noun, easy to say and to type."""

from __future__ import annotations

from collections.abc import Container
from random import Random
from typing import Final

ADJECTIVES: Final = (  # noqa: SIM905  # words one can read
    "amber ample brave bright brisk calm candid civil clear clever cosy crisp daring deft eager "
    "earnest fair fleet fond frank gentle glad golden hardy hearty humble jolly keen kind lively "
    "loyal lucid mellow merry mild modest neat nimble noble patient placid plucky polite prompt "
    "proud quiet rapid ready silver sincere sleek snug sober spry steady sunny swift tidy vivid "
    "warm wise witty"
).split()

NOUNS: Final = (  # noqa: SIM905  # words one can read
    "alder anchor aspen badger beacon birch bison bridge brook canyon cedar comet compass condor "
    "coral crane delta dune ember falcon fern finch fjord forge gannet glacier grove harbour hazel "
    "heron ibis island juniper kestrel lagoon lantern larch lark lynx maple marten meadow merlin "
    "mesa moraine oak orchid osprey otter pebble petrel pine plover quail raven reef river robin "
    "rowan sparrow spruce summit swan tern thistle trout valley walnut willow wren"
).split()


def generate_name(rng: Random, taken: Container[str]) -> str:
    """Return a name that is not taken, such as ``nimble_otter``.

    With every plain name taken it gets a number; the search ends in any case.
    """
    for attempt in range(1000):
        name = f"{rng.choice(ADJECTIVES)}_{rng.choice(NOUNS)}"
        if attempt >= 5:
            name += str(rng.randrange(10 ** (1 + attempt // 10)))
        if name not in taken:
            return name
    raise AssertionError("a hundred digits are not enough for everybody")
