"""The files of a node.

==================================  =====================================================================
``<state>/node.json``               addresses and identity: present exactly while the node is in a cluster
``<state>/state.json``              the known managers, in dockerd's form
``<state>/certificates/``           ``swarm.identity.keystore``
``<state>/manager.json``            settings of the manager process (manager nodes)
``<run>/session.json``              session id, network keys, the manager's word on this node
``<run>/gossip``                    this node's name in the gossip
``<run>/members.json``              some that it gossiped with lately
``<run>/attachments/<id>.json``     one endpoint, from before it is plugged until after it is unplugged
``<run>/networks/<id>``             the network as the manager described it
``<run>/memory/<id>``               what gossip said of the network (``agent.node.memory``)
==================================  =====================================================================

What must survive a reboot is in the state directory and synced; what only has to survive a restart of
the agent is in the run directory (usually memory) and is not, since an attach must not wait for a disk.
Every file is replaced as a whole.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from agent.node.address import Addresses
from swarm.api import codec
from swarm.errors import HostError, PreconditionError, SwarmError
from swarm.identity.sockets import private_directory
from swarm.model import EncryptionKey, Network, Node, Peer

NODE_FILE: Final = "node.json"
MANAGERS_FILE: Final = "state.json"
MANAGER_CONFIG_FILE: Final = "manager.json"
CERTIFICATES: Final = "certificates"
RAFT: Final = "raft"
MAX_FILE: Final = 16 << 20

_GOSSIP_NAME: Final = re.compile(r"(?=.*[a-f])[0-9a-f]{12}")

T = TypeVar("T")

log = structlog.get_logger(component="state")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """What a node remembers of its membership."""

    node_id: str
    cluster_id: str
    manager: bool
    addresses: Addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What lets a restarted agent go on while no manager answers."""

    session_id: str = ""
    keys: tuple[EncryptionKey, ...] = ()
    node: Node | None = None


class Stage(StrEnum):
    """Where a service's backend is in its life."""

    STARTING = "starting"
    """Plugged, its command is not known to serve yet: nobody is told of it."""
    SERVING = "serving"
    DRAINING = "draining"
    """No new flows; those it has go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePart:
    """What an endpoint is to a service. Its task is run, and spoken for, by ``agent.tasks``.

    Attributes:
        service_id: empty for a task that belongs to no service.
        service_name: what the service is called on the network.
        virtual_ips: its addresses on this network, without prefix length; none: DNS round robin.
        aliases: further names of the service on this network.
        ports: on an ingress network only, as ``PUBLISHED:TARGET/PROTOCOL``.
        stage: of this backend.
        weight: its share of new flows.
        sticky: a client keeps its backend.
        prefer_local: backends of the client's own node come first.
    """

    service_id: str = ""
    service_name: str = ""
    virtual_ips: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    stage: Stage = Stage.STARTING
    weight: int = 1
    sticky: bool = False
    prefer_local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One endpoint of this node, and why it exists.

    Attributes:
        endpoint_id: 64 hex digits, ours; the key of its gossip records.
        attachment_id: the manager's task.
        network_id: the network.
        target: how the caller named the network.
        container_id: 64 hex digits.
        container_name: what others resolve.
        netns: path of the namespace.
        interface: its name inside.
        mac: lower-case colon form.
        addresses: CIDR form.
        aliases: further names, the user's.
        order: rises with each attach of a container; the lowest has the default route.
        foreign: a namespace somebody else made.
        default_route: its network is the container's way out.
        upstreams: name servers for everything that is no name of the swarm.
        published: ports of this host that lead to the container, as ``PUBLISHED:TARGET/PROTOCOL``.
        service: for the endpoint of a service's task; None for an attachment.
    """

    endpoint_id: str
    attachment_id: str
    network_id: str
    target: str
    container_id: str
    container_name: str
    netns: str
    interface: str
    mac: str
    addresses: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    order: int = 0
    foreign: bool = False
    default_route: bool = False
    upstreams: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    service: ServicePart | None = None


class StateDirectory:
    """The durable half: membership."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def certificates(self) -> Path:
        """Where the key store is."""
        return self.path / CERTIFICATES

    def load(self) -> NodeState | None:
        """Read the membership; None when the node is in no cluster.

        Raises:
            HostError: the file is unreadable or not ours.
        """
        content = _read_json(self.path / NODE_FILE)
        if content is None:
            return None
        try:
            return _typed(
                NodeState, {**content, "addresses": _typed(Addresses, content["addresses"])}
            )
        except (KeyError, TypeError) as error:
            raise HostError(f"{self.path / NODE_FILE} is damaged: {error}") from error

    def save(self, state: NodeState) -> None:
        """Write the membership durably. Raises HostError."""
        _write_json(self.path / NODE_FILE, dataclasses.asdict(state), durable=True)

    def load_managers(self) -> tuple[Peer, ...]:
        """Read the known managers; empty when there are none. Raises HostError."""
        content = _read_json(self.path / MANAGERS_FILE)
        if content is None:
            return ()
        try:
            return tuple(Peer(node_id=entry["node_id"], addr=entry["addr"]) for entry in content)
        except (KeyError, TypeError) as error:
            raise HostError(f"{self.path / MANAGERS_FILE} is damaged: {error}") from error

    def save_managers(self, peers: tuple[Peer, ...]) -> None:
        """Write the known managers durably. Raises HostError."""
        content = [{"node_id": peer.node_id, "addr": peer.addr} for peer in peers]
        _write_json(self.path / MANAGERS_FILE, content, durable=True)

    def save_manager_config(self, config: Mapping[str, Any]) -> None:
        """Write the settings of the manager process. Raises HostError."""
        _write_json(self.path / MANAGER_CONFIG_FILE, config, durable=True)

    def load_manager_config(self) -> dict[str, Any]:
        """Read the settings of the manager process. Raises HostError."""
        content = _read_json(self.path / MANAGER_CONFIG_FILE)
        return content if isinstance(content, dict) else {}

    def require_unused(self) -> None:
        """Refuse a directory that holds something else than a node's state.

        Leaving a cluster removes everything in it, so it must be ours alone from the start.

        Raises:
            PreconditionError: there are files in it.
            HostError: it cannot be made or read.
        """
        private_directory(self.path)
        strange = sorted(entry.name for entry in self.path.iterdir())
        if strange:
            raise PreconditionError(
                f"the state directory {self.path} is not empty ({', '.join(strange[:3])}): "
                "use another one, or remove what is left of an earlier cluster"
            )

    def wipe(self) -> None:
        """Remove everything a membership left; the directory itself stays.

        The membership file goes first: what a crash leaves behind is no membership any more.
        """
        with contextlib.suppress(FileNotFoundError):
            (self.path / NODE_FILE).unlink()
        _empty(self.path)

    def wipe_manager(self) -> None:
        """Remove what the manager process of a demoted node left."""
        (self.path / MANAGER_CONFIG_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.path / RAFT, ignore_errors=True)


class RunDirectory:
    """The half that survives restarts of the agent but not of the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._attachments = path / "attachments"
        self._networks = path / "networks"
        self._memory = path / "memory"

    def prepare(self) -> None:
        """Make the directories. Raises HostError."""
        for path in (self._attachments, self._networks, self._memory):
            private_directory(path)

    def load_session(self) -> SessionState:
        """Read what is known of the last session; a damaged file counts as none."""
        try:
            content = _read_json(self.path / "session.json")
            if content is None:
                return SessionState()
            node = content["node"]
            return SessionState(
                session_id=str(content["session_id"]),
                keys=tuple(codec.loads(EncryptionKey, _unpack(key)) for key in content["keys"]),
                node=None if node is None else codec.loads(Node, _unpack(node)),
            )
        except (SwarmError, KeyError, TypeError, ValueError) as error:
            log.warning("state.session.damaged", detail=str(error))
            return SessionState()

    def save_session(self, state: SessionState) -> None:
        """Write what is known of the session. Raises HostError."""
        content = {
            "session_id": state.session_id,
            "keys": [_pack(codec.dumps(key)) for key in state.keys],
            "node": None if state.node is None else _pack(codec.dumps(state.node)),
        }
        _write_json(self.path / "session.json", content)

    def save_attachment(self, attachment: Attachment) -> None:
        """Write one attachment. Raises HostError."""
        _write_json(
            self._attachments / f"{attachment.endpoint_id}.json", dataclasses.asdict(attachment)
        )

    def drop_attachment(self, endpoint_id: str) -> None:
        """Forget one attachment; an unknown one is fine."""
        (self._attachments / f"{endpoint_id}.json").unlink(missing_ok=True)

    def attachments(self) -> list[Attachment]:
        """Read every attachment, in the order they were made; damaged ones are dropped."""
        found = list(_each(self._attachments, lambda path: _attachment(_read_json(path))))
        return sorted(found, key=lambda attachment: attachment.order)

    def save_network(self, network: Network) -> None:
        """Write one network. Raises HostError."""
        _write(self._networks / network.id, codec.dumps(network))

    def drop_network(self, network_id: str) -> None:
        """Forget one network; an unknown one is fine."""
        (self._networks / network_id).unlink(missing_ok=True)

    def networks(self) -> list[Network]:
        """Read every network; damaged ones are dropped."""
        return list(_each(self._networks, lambda path: codec.loads(Network, path.read_bytes())))

    def gossip_name(self, fresh: str) -> str:
        """Return the name under which this node gossips, ``fresh`` if it has none yet.

        A restarted agent that keeps its name keeps its entries: nobody sees them go and come.
        """
        path = self.path / "gossip"
        try:
            name = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            name = ""
        if not _GOSSIP_NAME.fullmatch(name):
            name = fresh
            _write(path, name.encode("ascii"))
        return name

    def members(self) -> tuple[tuple[str, int], ...]:
        """Read the addresses of some members met before; a damaged file counts as none."""
        try:
            content = _read_json(self.path / "members.json") or []
            return tuple(_member(host, port) for host, port in content)
        except (SwarmError, TypeError, ValueError) as error:
            log.warning("state.members.damaged", detail=str(error))
            return ()

    def save_members(self, members: Iterable[tuple[str, int]]) -> None:
        """Write the addresses of some members. Raises HostError."""
        _write_json(self.path / "members.json", [list(member) for member in members])

    def memory_path(self, network_id: str) -> Path:
        """Return where a network's remembered gossip entries are."""
        return self._memory / network_id

    def wipe(self) -> None:
        """Forget the membership; sockets and containers stay."""
        for directory in (self._attachments, self._networks, self._memory):
            _empty(directory)
        for name in ("session.json", "gossip", "members.json"):
            (self.path / name).unlink(missing_ok=True)


def _member(host: str, port: int) -> tuple[str, int]:
    if not 0 < port < 1 << 16:
        raise ValueError(f"{port} is no port")
    return str(ipaddress.ip_address(host)), port


def _each(directory: Path, read: Any) -> Iterator[Any]:
    """Read each file of a directory; what a crash cut or nobody can read is removed."""
    if not directory.exists():
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            path.unlink(missing_ok=True)  # the unfinished half of a replacement
            continue
        try:
            yield read(path)
        except (SwarmError, OSError, TypeError, KeyError, ValueError) as error:
            log.warning("state.file.damaged", path=str(path), detail=str(error))
            path.unlink(missing_ok=True)


def _typed(kind: type[T], content: Any) -> T:
    """Build a flat dataclass out of JSON; lists become tuples, unknown keys are refused."""
    if not isinstance(content, dict):
        raise TypeError(f"{kind.__name__} is not a JSON object")
    return kind(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
        }
    )


def _attachment(content: Any) -> Attachment:
    part = content.get("service") if isinstance(content, dict) else None
    if part is not None:
        part = _typed(ServicePart, {**part, "stage": Stage(part["stage"])})
    return _typed(Attachment, {**content, "service": part})


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if len(text) > MAX_FILE:
        raise HostError(f"{path} is larger than {MAX_FILE} bytes")
    try:
        return json.loads(text)
    except ValueError as error:
        raise HostError(f"{path} is damaged: {error}") from error


def _write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    _write(path, json.dumps(content, indent=1).encode() + b"\n", durable=durable)


def _write(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace a file as a whole; 0600, since keys and addresses are nobody's business."""
    staged = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        staged.replace(path)
        if durable:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def _empty(directory: Path) -> None:
    if not directory.exists():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unpack(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
