"""A packed encoder and decoder for the XFRM (IPsec) netlink messages the data plane sends. Pure.

Policies are known as ours by their selector, which no other program uses: UDP from the source
ports of encrypted networks (a value and a mask). Associations are known by their ``reqid``.

The selector, and not a mark set by nftables: a flushed ruleset would take the mark away and with
it the encryption. Here IPsec and nftables are two layers, and each alone keeps clear text in.

Source:
    Linux ``include/uapi/linux/xfrm.h`` (structures, XFRM_MSG_*, XFRMA_*), ``linux/netlink.h``.
    Integers are in host order but for addresses, ports and SPIs.
"""

from __future__ import annotations

import ipaddress
import struct

from agent.dataplane.model import IPAddress
from agent.dataplane.names import ESP_SOURCES, IPSEC_REQID
from agent.dataplane.netlink import FAMILY, NEW, NLM_F_DUMP, Message, attr, attrs
from agent.dataplane.objects import Association, Policy
from swarm.errors import WireError

NETLINK_XFRM = 6
NEWSA, DELSA, GETSA = 0x10, 0x11, 0x12
NEWPOLICY, DELPOLICY, GETPOLICY = 0x13, 0x14, 0x15
UPDPOLICY, FLUSHSA, FLUSHPOLICY = 0x19, 0x1C, 0x1D
XFRMA_TMPL, XFRMA_REPLAY_VAL, XFRMA_ALG_AEAD = 5, 10, 18
XFRMA_MARK, XFRMA_IF_ID = 21, 31
DIR_OUT = 1
ACTION_ALLOW, ACTION_BLOCK = 0, 1
MODE_TRANSPORT = 0
IPPROTO_UDP, IPPROTO_ESP = 17, 50
PRIORITY_ALLOW, PRIORITY_BLOCK = 0, 1000
"""The smaller wins; equal ones would block in either order of insertion."""

AEAD = b"rfc4106(gcm(aes))"
KEY_BITS = 160
"""AES-128 and 4 bytes of salt."""
ICV_BITS = 64

SOURCE_PORT = ESP_SOURCES[0]
SOURCE_MASK = ~(ESP_SOURCES[0] ^ ESP_SOURCES[1]) & 0xFFFF
_PORT_MASK = 0xFFFF

_SELECTOR = struct.Struct("=16s16s4s4sHBBB3xiI")  # xfrm_selector: daddr, saddr, ports, ...
_PORTS = struct.Struct("!HH")  # a port and its mask
_LIFETIME = struct.pack("=8Q", *[(1 << 64) - 1] * 4, 0, 0, 0, 0)  # xfrm_lifetime_cfg: no limit
_CURRENT = bytes(32)  # xfrm_lifetime_cur
_ID = struct.Struct("=16s4sB3x")  # xfrm_id: daddr, SPI, protocol
_SA_TAIL = struct.Struct("=12xIIHBBB7x")  # stats, seq, reqid, family, mode, replay window, flags
_POLICY_TAIL = struct.Struct("=IIBBBB4x")  # priority, index, direction, action, flags, share
_TEMPLATE = struct.Struct("=24sHxx16sIBBBxIII")  # xfrm_user_tmpl
_SA_ID = struct.Struct("=16s4sHBx")  # xfrm_usersa_id
_POLICY_ID = struct.Struct("=56sIB3x")  # xfrm_userpolicy_id
_ALGORITHM = struct.Struct("=64sII")  # xfrm_algo_aead: name, key bits, ICV bits
_U32 = struct.Struct("=I")
_ALL = 0xFFFFFFFF

SELECTOR_SIZE, SA_SIZE, POLICY_SIZE, TEMPLATE_SIZE = 56, 224, 168, 64
SA_ID_SIZE, POLICY_ID_SIZE = 24, 64


def _packed(ip: IPAddress | None) -> bytes:
    return bytes(16) if ip is None else ip.packed.ljust(16, b"\0")


def _spi(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _selector(policy: Policy) -> bytes:
    length = 0 if policy.remote is None else policy.remote.max_prefixlen
    return _SELECTOR.pack(
        _packed(policy.remote),
        _packed(policy.local),
        _PORTS.pack(policy.port, _PORT_MASK),
        _PORTS.pack(SOURCE_PORT, SOURCE_MASK),
        FAMILY[policy.version],
        length,
        length,
        IPPROTO_UDP,
        0,
        0,
    )


def put_policy(policy: Policy) -> Message:
    """Put a policy, replacing the one with its selector in one step."""
    blocks = policy.spi is None
    body = b"".join(
        (
            _selector(policy),
            _LIFETIME,
            _CURRENT,
            _POLICY_TAIL.pack(
                PRIORITY_BLOCK if blocks else PRIORITY_ALLOW,
                0,
                DIR_OUT,
                ACTION_BLOCK if blocks else ACTION_ALLOW,
                0,
                0,
            ),
        )
    )
    if policy.spi is not None:
        template = _TEMPLATE.pack(
            _ID.pack(_packed(policy.remote), _spi(policy.spi), IPPROTO_ESP),
            FAMILY[policy.version],
            _packed(policy.local),
            IPSEC_REQID,
            MODE_TRANSPORT,
            0,
            0,
            *(_ALL,) * 3,
        )
        body += attr(XFRMA_TMPL, template)
    # XFRM_MSG_UPDPOLICY also makes one that is not there; NEWPOLICY would refuse to replace.
    return Message(UPDPOLICY, 0, body)


def delete_policy(policy: Policy) -> Message:
    """Remove the policy with this selector."""
    return Message(DELPOLICY, 0, _POLICY_ID.pack(_selector(policy), 0, DIR_OUT))


def all_policies() -> Message:
    """Ask for all policies."""
    return Message(GETPOLICY, NLM_F_DUMP, bytes(POLICY_ID_SIZE))


def new_association(item: Association) -> Message:
    """Make an association; one with its SPI and destination is not replaced.

    Neither replay window nor extended sequence numbers: an engine that makes its association anew
    starts again from number 1, and a window would drop everything it sends.
    """
    family = FAMILY[item.source.version]
    key = item.material or b""
    body = b"".join(
        (
            bytes(SELECTOR_SIZE),
            _ID.pack(_packed(item.destination), _spi(item.spi), IPPROTO_ESP),
            _packed(item.source),
            _LIFETIME,
            _CURRENT,
            _SA_TAIL.pack(0, IPSEC_REQID, family, MODE_TRANSPORT, 0, 0),
            attr(XFRMA_ALG_AEAD, _ALGORITHM.pack(AEAD, KEY_BITS, ICV_BITS) + key),
        )
    )
    return Message(NEWSA, NEW, body)


def delete_association(item: Association) -> Message:
    """Remove an association."""
    return Message(DELSA, 0, _sa_id(item))


def get_association(item: Association) -> Message:
    """Ask for one association by destination and SPI."""
    return Message(GETSA, 0, _sa_id(item))


def _sa_id(item: Association) -> bytes:
    family = FAMILY[item.destination.version]
    return _SA_ID.pack(_packed(item.destination), _spi(item.spi), family, IPPROTO_ESP)


def all_associations() -> Message:
    """Ask for all associations."""
    return Message(GETSA, NLM_F_DUMP, b"")


# --- answers ---------------------------------------------------------------------------------

_VERSION = {number: version for version, number in FAMILY.items()}


def _address(raw: bytes, version: int) -> IPAddress:
    return ipaddress.ip_address(raw[: 4 if version == 4 else 16])


def parse_policy(body: bytes) -> Policy | None:
    """Return the policy in an XFRM_MSG_NEWPOLICY body, None when it is not ours.

    One of ours with anything in it that we would not have set has SPI 0, which no wanted one has.
    """
    if len(body) < POLICY_SIZE:
        raise WireError("an IPsec policy is cut short")
    daddr, saddr, dports, sports, family, dlen, slen, proto, _, _ = _SELECTOR.unpack_from(body)
    priority, _, direction, action, _, _ = _POLICY_TAIL.unpack_from(body, POLICY_SIZE - 16)
    found = attrs(body, POLICY_SIZE)
    ours = (
        (direction, proto, _PORTS.unpack(sports))
        == (DIR_OUT, IPPROTO_UDP, (SOURCE_PORT, SOURCE_MASK))
        and XFRMA_MARK not in found
        and XFRMA_IF_ID not in found
    )
    if not ours or family not in _VERSION:
        return None
    version = _VERSION[family]
    remote = _address(daddr, version) if dlen else None
    local = _address(saddr, version) if slen else None
    spi: int | None = 0
    if (action, priority) == (ACTION_BLOCK, PRIORITY_BLOCK):
        spi = None
    elif (action, priority) == (ACTION_ALLOW, PRIORITY_ALLOW) and local and remote:
        spi = _template_spi(found.get(XFRMA_TMPL, b""), local, remote)
    return Policy(
        local=local, remote=remote, port=_PORTS.unpack(dports)[0], version=version, spi=spi
    )


def _template_spi(raw: bytes, local: IPAddress, remote: IPAddress) -> int:
    if len(raw) != TEMPLATE_SIZE:
        return 0
    name, _, saddr, reqid, mode, _, optional, *_ = _TEMPLATE.unpack(raw)
    daddr, number, proto = _ID.unpack(name)
    wanted = (IPPROTO_ESP, IPSEC_REQID, MODE_TRANSPORT, 0, _packed(remote), _packed(local))
    if (proto, reqid, mode, optional, daddr, saddr) != wanted:
        return 0
    return int.from_bytes(number, "big")


def parse_association(body: bytes, local: IPAddress) -> Association | None:
    """Return the association in an XFRM_MSG_NEWSA body, None when it is not ours.

    Args:
        body: of the message.
        local: this node's tunnel address; an association from it sends.
    """
    if len(body) < SA_SIZE:
        raise WireError("an IPsec association is cut short")
    daddr, number, proto = _ID.unpack_from(body, SELECTOR_SIZE)
    saddr = body[SELECTOR_SIZE + _ID.size : SELECTOR_SIZE + _ID.size + 16]
    _, reqid, family, mode, window, flags = _SA_TAIL.unpack_from(body, SA_SIZE - _SA_TAIL.size)
    if reqid != IPSEC_REQID or proto != IPPROTO_ESP or family not in _VERSION:
        return None
    found = attrs(body, SA_SIZE)
    usual = (mode, window, flags) == (MODE_TRANSPORT, 0, 0) and not (
        XFRMA_MARK in found or XFRMA_IF_ID in found
    )
    source = _address(saddr, _VERSION[family])
    replay = found.get(XFRMA_REPLAY_VAL, b"")
    return Association(
        source=source,
        destination=_address(daddr, _VERSION[family]),
        spi=int.from_bytes(number, "big"),
        material=_material(found.get(XFRMA_ALG_AEAD, b"")) if usual else b"",
        sends=source == local,
        sent=_U32.unpack_from(replay)[0] if len(replay) >= _U32.size else 0,
    )


def _material(raw: bytes) -> bytes | None:
    """Return the key material, None when the kernel hides it, nothing when it is another cipher's."""
    if len(raw) != _ALGORITHM.size + KEY_BITS // 8:
        return b""
    name, key_bits, icv_bits = _ALGORITHM.unpack_from(raw)
    if (name.rstrip(b"\0"), key_bits, icv_bits) != (AEAD, KEY_BITS, ICV_BITS):
        return b""
    key = raw[_ALGORITHM.size :]
    # A locked-down kernel (LOCKDOWN_XFRM_SECRET) shows zeros.
    return key if any(key) else None
