"""Which endpoint is in a namespace that somebody else made, whatever path it is named by."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from agent.node.state import Attachment

_Identity = tuple[int, int]


class Namespaces:
    """Finds endpoints by namespace. Looks at each path once, and again only when it seems to match."""

    def __init__(self) -> None:
        self._seen: Mapping[str, _Identity | None] = {}

    def find(self, path: str, attachments: Sequence[Attachment]) -> Attachment | None:
        """Return an endpoint in the same namespace; blocks, for a worker thread.

        Args:
            path: of the namespace.
            attachments: all endpoints of this node; those of our own containers mean nothing.
        """
        identity = _identity(path)
        if identity is None:
            return None
        foreign = [entry for entry in attachments if entry.foreign]
        before = self._seen
        # Made anew, not changed: two threads may be at it. What is gone is forgotten by that.
        seen = {
            entry.netns: before[entry.netns] if entry.netns in before else _identity(entry.netns)
            for entry in foreign
        }
        self._seen = seen
        for entry in foreign:
            alike = entry.netns == path or seen[entry.netns] == identity
            if alike and _identity(entry.netns) == identity:
                return entry
        return None


def _identity(path: str) -> _Identity | None:
    try:
        status = os.stat(path)  # noqa: PTH116  # a namespace file, not a path to work with
    except OSError:
        return None
    return status.st_dev, status.st_ino
