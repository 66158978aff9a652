"""How a service's flows are spread: labels that managers check and agents obey.

==========================  ======================================================================
``overswarm.affinity``      ``client``: a client's flows all lead to one backend; ``none``
``overswarm.prefer``        ``local``: backends on the client's own node come first; ``none``
``overswarm.weight``        share of a backend, 1 to 16; on the service, or on one task (a placement's
                            annotations)
``overswarm.grace``         seconds a leaving backend keeps its flows, 0 to 3600
==========================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from swarm.errors import InvalidArgumentError

AFFINITY: Final = "overswarm.affinity"
PREFER: Final = "overswarm.prefer"
WEIGHT: Final = "overswarm.weight"
GRACE: Final = "overswarm.grace"

MAX_WEIGHT: Final = 16
MAX_GRACE: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    """What the labels say.

    Attributes:
        sticky: a client keeps its backend.
        prefer_local: backends of the client's own node come first.
        weight: share of a backend.
        grace: seconds a leaving backend keeps its flows; None for the usual.
    """

    sticky: bool = False
    prefer_local: bool = False
    weight: int = 1
    grace: int | None = None


def parse(*labels: Mapping[str, str]) -> Balancing:
    """Read labels; what a later mapping says takes precedence.

    Raises:
        InvalidArgumentError: a value is none of those above.
    """
    merged = {key: value for each in labels for key, value in each.items()}
    grace = merged.get(GRACE)
    return Balancing(
        sticky=_choice(merged, AFFINITY, "client"),
        prefer_local=_choice(merged, PREFER, "local"),
        weight=_number(WEIGHT, merged.get(WEIGHT, "1"), 1, MAX_WEIGHT),
        grace=None if grace is None else _number(GRACE, grace, 0, MAX_GRACE),
    )


def parse_lenient(*labels: Mapping[str, str]) -> Balancing:
    """Read labels that nobody may have checked; nonsense means the usual."""
    try:
        return parse(*labels)
    except InvalidArgumentError:
        return Balancing()


def _choice(labels: Mapping[str, str], label: str, name: str) -> bool:
    value = labels.get(label, "none")
    if value not in {name, "none"}:
        raise InvalidArgumentError(f"label {label} is {name!r} or 'none', not {value[:60]!r}")
    return value == name


def _number(label: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and low <= int(text) <= high):
        raise InvalidArgumentError(f"label {label} is a number from {low} to {high}: {text[:60]!r}")
    return int(text)
