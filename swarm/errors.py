"""The errors that cross package borders, by cause.

A class says whose move it is: the caller's (bad argument, missing object, conflict), the
peer's (malformed input), the host's (a kernel without VXLAN), or nobody's yet (retry). ``status``
is the gRPC status name the error becomes at an API boundary; ``retryable`` says whether the same
call can succeed later without anybody changing anything.
"""

from __future__ import annotations

from typing import ClassVar, Final


class SwarmError(Exception):
    """Base of every error this project raises on purpose; its text is one sentence for a person."""

    status: ClassVar[str] = "UNKNOWN"
    retryable: ClassVar[bool] = False


class InvalidArgumentError(SwarmError):
    """The caller sent something that can never be right."""

    status = "INVALID_ARGUMENT"


class NotFoundError(SwarmError):
    """The object the caller named does not exist."""

    status = "NOT_FOUND"


class ConflictError(SwarmError):
    """The name, address, VNI or port is taken already."""

    status = "ALREADY_EXISTS"


class PermissionDeniedError(SwarmError):
    """The caller is known but may not do this."""

    status = "PERMISSION_DENIED"


class PreconditionError(SwarmError):
    """The call is right but the cluster's or host's state forbids it; the text says what to change."""

    status = "FAILED_PRECONDITION"


class StaleError(SwarmError):
    """The object changed since the caller read it, or the component is not in charge (any more)."""

    status = "ABORTED"
    retryable = True


class ExhaustedError(SwarmError):
    """A pool, range or bounded queue has nothing left."""

    status = "RESOURCE_EXHAUSTED"


class UnavailableError(SwarmError):
    """The other side cannot be reached now."""

    status = "UNAVAILABLE"
    retryable = True


class DeadlineError(SwarmError):
    """The other side did not answer in time."""

    status = "DEADLINE_EXCEEDED"
    retryable = True


class UnimplementedError(SwarmError):
    """The protocol has this call, this program does not offer it."""

    status = "UNIMPLEMENTED"


class HostError(SwarmError):
    """The machine lacks something (a kernel feature, a library, a privilege); the text says what."""

    status = "FAILED_PRECONDITION"


class WireError(SwarmError):
    """Bytes off the network are not what the protocol allows."""

    status = "INVALID_ARGUMENT"


class InvariantError(SwarmError):
    """A broken invariant: a bug here, not a condition to handle. Ends the process under supervision."""

    status = "INTERNAL"


_BY_STATUS: Final[dict[str, type[SwarmError]]] = {
    kind.status: kind
    for kind in (
        InvalidArgumentError,
        NotFoundError,
        ConflictError,
        PermissionDeniedError,
        PreconditionError,
        StaleError,
        ExhaustedError,
        UnavailableError,
        DeadlineError,
        UnimplementedError,
    )
}


def error_of(status: str, text: str) -> SwarmError:
    """Return the error that a gRPC status name (``NOT_FOUND``) and its details mean to the caller."""
    kind = _BY_STATUS.get(status, SwarmError)
    return kind(text or status.lower().replace("_", " "))
