"""The one converter between protobuf messages and the model's dataclasses.

A dataclass and its message have the same name and the same field names (a trailing underscore
dodges Python keywords), so one compiled table per class does the work of sixty hand-written
converters. Forms:

- scalar, enumeration, nested dataclass (``None`` or the field's default when absent);
- ``tuple`` for repeated fields, ``dict`` for maps;
- ``int | None`` nanoseconds for ``Timestamp`` and ``Duration``;
- ``bytes`` where the message is carried untouched.

:func:`encode` and :func:`decode` convert to and from messages, :func:`dumps` and :func:`loads` to
and from bytes.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, TypeVar

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from swarm.api.docker.swarmkit import control_pb2, dispatcher_pb2
from swarm.errors import InvariantError, WireError

PACKAGE = "docker.swarmkit.v1"
_LOADED = (control_pb2, dispatcher_pb2)  # their import registers every message of the model
_TIMES = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
_NANO = 1_000_000_000

SHARED = frozenset({"Network", "TaskSpec", "Endpoint"})
"""Messages that many objects carry the very same instance of: written once, then copied as bytes."""
MAX_SHARED = 4096
"""Instances whose bytes are kept ..."""
MAX_SHARED_BYTES = 4096
"""... unless they are more than this."""

T = TypeVar("T")
_Setter = Callable[[Message, Any], None]
_Getter = Callable[[Message], Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """How one attribute travels; ``get`` is None-safe and ``put`` is called only for non-defaults."""

    attribute: str
    default: Any
    put: _Setter
    get: _Getter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    message: Callable[[], Message]
    fields: tuple[_Field, ...]


def encode(value: object) -> Message:
    """Return the protobuf message of a model object."""
    table = _table(type(value))
    message = table.message()
    for entry in table.fields:
        content = getattr(value, entry.attribute)
        if content is not None and content != entry.default:
            entry.put(message, content)
    return message


def decode(kind: type[T], message: Message) -> T:
    """Return the model object of a protobuf message.

    Raises:
        WireError: an enumeration holds a value the model does not know.
    """
    return kind(**{entry.attribute: entry.get(message) for entry in _table(kind).fields})


def dumps(value: object) -> bytes:
    """Return a model object's wire bytes."""
    return encode(value).SerializeToString(deterministic=True)


def loads(kind: type[T], data: bytes) -> T:
    """Return the model object that ``data`` encodes.

    Raises:
        WireError: ``data`` is not such a message.
    """
    message = _table(kind).message()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a {kind.__name__} message: {error}") from error
    return decode(kind, message)


_tables: dict[type[Any], _Table] = {}  # compiled on first use, never changed after


def _table(kind: type[Any]) -> _Table:
    table = _tables.get(kind)
    if table is None:
        table = _tables[kind] = _compile_table(kind)
    return table


def _compile_table(kind: type[Any]) -> _Table:
    descriptor = descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{kind.__name__}")
    hints = typing.get_type_hints(kind)
    return _Table(
        message=message_factory.GetMessageClass(descriptor),
        fields=tuple(
            _compile(entry, hints[entry.name], descriptor) for entry in dataclasses.fields(kind)
        ),
    )


def _compile(entry: dataclasses.Field[Any], hint: Any, owner: Descriptor) -> _Field:
    name = entry.name.rstrip("_")
    field = owner.fields_by_name.get(name)
    if field is None:
        raise InvariantError(f"{owner.full_name} has no field {name}")
    zero: Any = None
    if field.is_repeated:
        put, get = _mapping(field, hint) if _is_map(field) else _repeated(field, hint)
        zero = {} if _is_map(field) else ()
    elif field.message_type is not None:
        put, get = _single(field, hint, entry)
    else:
        put, get = _scalar(field, hint)
        zero = None if field.containing_oneof is not None else field.default_value
    return _Field(attribute=entry.name, default=zero, put=put, get=get)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _optional(hint: Any) -> Any:
    """``X | None`` -> ``X``."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        (inner,) = (each for each in typing.get_args(hint) if each is not type(None))
        return inner
    return hint


def _scalar(field: FieldDescriptor, hint: Any) -> tuple[_Setter, _Getter]:
    name, kind = field.name, _optional(hint)

    def put(message: Message, value: Any) -> None:
        setattr(message, name, value)

    def get(message: Message) -> Any:
        return getattr(message, name)

    def get_enum(message: Message) -> Any:
        return _member(kind, getattr(message, name))

    def get_oneof(message: Message) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    if field.containing_oneof is not None:
        return put, get_oneof
    return put, get_enum if isinstance(kind, type) and issubclass(kind, IntEnum) else get


def _member(kind: type[IntEnum], value: int) -> IntEnum:
    try:
        return kind(value)
    except ValueError as error:
        raise WireError(f"{value} is not a {kind.__name__}") from error


def _value(kind: Any, type_name: str) -> tuple[Callable[[Any, Any], None], Callable[[Any], Any]]:
    """Return (fill an existing message from a value, value of a message) for one message type."""
    if type_name in _TIMES:
        return _fill_time, lambda message: message.seconds * _NANO + message.nanos
    if kind is bytes:
        return lambda message, value: message.MergeFromString(
            value
        ), lambda message: message.SerializeToString()
    if kind.__name__ in SHARED:
        return lambda message, value: message.MergeFromString(
            _shared(value)
        ), lambda message: decode(kind, message)
    return lambda message, value: message.CopyFrom(encode(value)), lambda message: decode(
        kind, message
    )


_written: dict[
    int, tuple[object, bytes]
] = {}  # by identity; the object is kept, so that it stays its own


def _shared(value: object) -> bytes:
    known = _written.get(id(value))
    if known is not None:
        return known[1]
    data = dumps(value)
    if len(data) <= MAX_SHARED_BYTES:
        if len(_written) >= MAX_SHARED:
            _written.clear()
        _written[id(value)] = value, data
    return data


def _fill_time(message: Any, value: int) -> None:
    message.seconds, message.nanos = divmod(value, _NANO)


def _single(
    field: FieldDescriptor, hint: Any, entry: dataclasses.Field[Any]
) -> tuple[_Setter, _Getter]:
    name = field.name
    assert field.message_type is not None  # noqa: S101  # told to the type checker; the caller looked
    fill, read = _value(_optional(hint), field.message_type.full_name)
    absent = None if entry.default is dataclasses.MISSING else entry.default

    def put(message: Message, value: Any) -> None:
        part = getattr(message, name)
        part.SetInParent()
        fill(part, value)

    def get(message: Message) -> Any:
        return read(getattr(message, name)) if message.HasField(name) else absent

    return put, get


def _repeated(field: FieldDescriptor, hint: Any) -> tuple[_Setter, _Getter]:
    name = field.name
    kind = typing.get_args(hint)[0]
    if field.message_type is None:

        def extend(message: Message, value: Any) -> None:
            getattr(message, name).extend(value)

        def items(message: Message) -> Any:
            return tuple(getattr(message, name))

        return extend, items
    fill, read = _value(kind, field.message_type.full_name)

    def put(message: Message, value: Any) -> None:
        into = getattr(message, name)
        for each in value:
            fill(into.add(), each)

    def get(message: Message) -> Any:
        return tuple(read(each) for each in getattr(message, name))

    return put, get


def _mapping(field: FieldDescriptor, hint: Any) -> tuple[_Setter, _Getter]:
    name = field.name
    assert field.message_type is not None  # noqa: S101  # told to the type checker; the caller looked
    content = field.message_type.fields_by_name["value"]
    kind = typing.get_args(hint)[1]
    if content.message_type is None:

        def update(message: Message, value: Mapping[str, Any]) -> None:
            getattr(message, name).update(value)

        def plain(message: Message) -> Any:
            return dict(getattr(message, name))

        return update, plain
    fill, read = _value(kind, content.message_type.full_name)

    def put(message: Message, value: Mapping[str, Any]) -> None:
        into = getattr(message, name)
        for key, each in value.items():
            fill(into[key], each)

    def get(message: Message) -> Any:
        return {key: read(each) for key, each in getattr(message, name).items()}

    return put, get
