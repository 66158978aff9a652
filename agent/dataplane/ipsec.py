"""IPsec of the daemon's namespace: what is there, and the execution of plans on it. Worker thread only."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator, Sequence

from agent.dataplane import crypto, guards, namespace, xfrm
from agent.dataplane.channel import Channel, KernelError
from agent.dataplane.model import Encryption, IpsecKey, Settings
from agent.dataplane.names import IPSEC_TABLE, LOOPBACK
from agent.dataplane.netlink import Message
from agent.dataplane.nft import Nft
from agent.dataplane.objects import (
    Association,
    Cover,
    Guards,
    Key,
    Object,
    Op,
    Policy,
    Put,
)
from agent.dataplane.planner import keyed
from swarm.errors import ConflictError, HostError

_ABSENT = frozenset(
    {
        errno.EPROTONOSUPPORT,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOENT,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
    }
)
"""What kernels say when they have no ESP (the first, since 4.9), no cipher, or no IPsec at all."""


class Ipsec:
    """Sockets of the namespace its constructor ran in; opened when first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel: Channel | None = None
        self._nft: Nft | None = None

    def close(self) -> None:
        """Let go of everything; the kernel's state stays."""
        if self._channel is not None:
            self._channel.close()
        if self._nft is not None:
            self._nft.close()
        self._channel = self._nft = None

    def _xfrm(self) -> Channel | None:
        """Return the channel, None when this kernel has no IPsec."""
        if self._channel is None:
            try:
                self._channel = Channel(xfrm.NETLINK_XFRM)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
        return self._channel

    def _tables(self) -> Nft:
        if self._nft is None:
            self._nft = Nft()
        return self._nft

    def _listings(self) -> dict[str, guards.Listing]:
        return {family: self._tables().table(family, IPSEC_TABLE) for family in guards.FAMILIES}

    # --- questions ---------------------------------------------------------------------------

    def observe(self) -> dict[Key, Object]:
        """Return everything of ours."""
        found: list[Object] = [*self._policies(), *self._associations()]
        found += guards.observed(self._listings(), self._settings.port)
        return keyed(found)

    def _policies(self) -> Iterator[Policy]:
        channel = self._xfrm()
        bodies = channel.dump(xfrm.all_policies()) if channel is not None else ()
        for policy in map(xfrm.parse_policy, bodies):
            if policy is not None:
                yield policy

    def _associations(self) -> Iterator[Association]:
        channel = self._xfrm()
        bodies = channel.dump(xfrm.all_associations()) if channel is not None else ()
        for body in bodies:
            item = xfrm.parse_association(body, self._settings.vtep)
            if item is not None:
                yield item

    def status(self) -> Encryption:
        """Return what the kernel holds and has dropped; the keys are the caller's to tell."""
        listings = self._listings()
        dropped_in, dropped_out = guards.dropped(listings)
        covers = guards.observed(listings, self._settings.port)
        policies = list(self._policies())
        return Encryption(
            vnis=frozenset(item.vni for item in covers if isinstance(item, Cover)),
            peers=frozenset(p.remote for p in policies if p.spi and p.remote is not None),
            associations=sum(1 for _ in self._associations()),
            dropped_in=dropped_in,
            dropped_out=dropped_out,
        )

    # --- execution ---------------------------------------------------------------------------

    def apply(self, ops: Sequence[Op]) -> None:
        """Execute operations in order; stops at the first that fails.

        Raises:
            ConflictError: an association of another program has our SPI.
            HostError: the kernel refused.
        """
        handlers: dict[type, Callable[[list[Op]], None]] = {
            Guards: self._apply_nft,
            Cover: self._apply_nft,
            Policy: self._apply_policies,
            Association: self._apply_associations,
        }
        for handler, group in itertools.groupby(ops, key=lambda op: handlers[type(op.object)]):
            handler(list(group))

    def _apply_nft(self, ops: list[Op]) -> None:
        commands: list[str] = []
        gone = any(not isinstance(op, Put) and isinstance(op.object, Guards) for op in ops)
        for op in ops:
            add = isinstance(op, Put)
            if isinstance(op.object, Guards):
                text = guards.build(op.object, self._settings.port) if add else guards.destroy()
                commands.append(text)
            elif isinstance(op.object, Cover) and not gone:
                commands.append(guards.element(op.object, add=add))
        self._tables().run("\n".join(commands))

    def _open(self) -> Channel:
        channel = self._xfrm()
        if channel is None:
            raise HostError(lacking(self._settings, "no IPsec"))
        return channel

    def _apply_policies(self, ops: list[Op]) -> None:
        messages = [
            xfrm.put_policy(op.object) if isinstance(op, Put) else xfrm.delete_policy(op.object)
            for op in ops
            if isinstance(op.object, Policy)
        ]
        self._check(ops, messages)

    def _apply_associations(self, ops: list[Op]) -> None:
        for adding, group in itertools.groupby(ops, key=lambda op: isinstance(op, Put)):
            part = list(group)
            items = [op.object for op in part if isinstance(op.object, Association)]
            if adding:
                self._add(part, items)
            else:
                self._check(part, [xfrm.delete_association(item) for item in items])

    def _add(self, ops: list[Op], items: list[Association]) -> None:
        results = self._open().run([xfrm.new_association(item) for item in items])
        for op, item, (number, text) in zip(ops, items, results, strict=True):
            if number == errno.EEXIST:
                self._replace(op, item)
            elif number:
                raise KernelError(f"the kernel refused {op}: {text}", number)

    def _replace(self, op: Op, item: Association) -> None:
        """Put an association in the place of one of ours with other keys: the kernel has no such step."""
        body = self._open().ask(xfrm.get_association(item))
        if body is not None:
            held = xfrm.parse_association(body, self._settings.vtep)
            if held is None:
                raise ConflictError(
                    f"another program's IPsec association holds SPI {item.spi:#010x} "
                    f"to {item.destination}"
                )
            if held == item:
                return
        self._check([op, op], [xfrm.delete_association(item), xfrm.new_association(item)])

    def _check(self, ops: list[Op], messages: list[Message]) -> None:
        try:
            self._open().check(messages)
        except KernelError as error:
            text = f"the kernel refused {ops[error.position]}: {error}"
            raise KernelError(text, error.number, error.position) from error


def prove(settings: Settings, home: int) -> None:
    """Load everything an encrypted network needs into a namespace that ends right after.

    Raises:
        HostError: this kernel cannot; the text names what it lacks.
    """
    with namespace.scratch(home):
        _prove_esp(settings)
        tables = Nft()
        try:
            tables.run(
                guards.build(guards.wanted(settings.port, [(LOOPBACK, "lo")]), settings.port)
            )
        except HostError as error:
            raise HostError(
                f"the kernel refuses the guards of encrypted networks ({error}); it needs "
                "CONFIG_NFT_XFRM and CONFIG_NETFILTER_EGRESS (Linux 5.16 or later)"
            ) from error
        finally:
            tables.close()


def _prove_esp(settings: Settings) -> None:
    ring = crypto.Keyring(live=(IpsecKey(lamport=1, key=bytes(range(16))),))
    items = crypto.associations(settings.vtep, settings.vtep, ring)
    try:
        channel = Channel(xfrm.NETLINK_XFRM)
    except OSError as error:
        raise HostError(lacking(settings, error.strerror or "")) from error
    try:
        channel.check([xfrm.put_policy(crypto.block(settings.port, settings.vtep.version))])
        channel.check([xfrm.new_association(next(items))])
    except KernelError as error:
        if error.number not in _ABSENT:
            raise
        raise HostError(lacking(settings, str(error))) from error
    finally:
        channel.close()


def lacking(settings: Settings, reason: str) -> str:
    """Return the sentence about a kernel that cannot encrypt."""
    module, option = ("esp4", "INET_ESP") if settings.vtep.version == 4 else ("esp6", "INET6_ESP")
    return (
        f"this kernel has no ESP with AES-GCM, which encrypted networks need ({reason}): "
        f"run 'modprobe -a xfrm_user {module} gcm', or use a kernel built with CONFIG_XFRM_USER, "
        f"CONFIG_{option} and CONFIG_CRYPTO_GCM"
    )
