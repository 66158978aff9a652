"""What the callers of the store can meet beyond the common errors."""

from __future__ import annotations

from swarm.errors import ConflictError


class RepeatedError(ConflictError):
    """A request with this id took effect before; nothing was done now.

    Attributes:
        index: version of the objects the request wrote.
        created: (noun, id) of the objects it created, so that a retried create can answer with them;
            empty when they were more than ``MAX_NAMED``.
    """

    def __init__(self, request_id: str, index: int, created: tuple[tuple[str, str], ...]) -> None:
        super().__init__(f"request {request_id} was carried out already, at version {index}")
        self.index = index
        self.created = created
