"""``swarm network`` and ``swarm endpoints``."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import click

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2, objects_pb2, specs_pb2, types_pb2
from swarm.api.overswarm.v1 import local_pb2
from swarm.cli.aliases import Aliased
from swarm.cli.complete import completer
from swarm.cli.listing import Listing, listing
from swarm.cli.lookup import pick
from swarm.cli.output import FORMAT_HELP, natural, print_objects, rfc3339
from swarm.cli.parse import label_match, pairs
from swarm.cli.several import for_each
from swarm.client import Client, connect
from swarm.errors import NotFoundError, PreconditionError
from swarm.model import IPAMConfig, Network

_CALL_SECONDS = 30
_ID_CHARS = 12
_PREDEFINED = "com.docker.swarm.predefined"
_DSR = (
    "Note: every network of this swarm does what dsr asks for: services see their clients' own addresses"
    " and answer them directly. Only Docker engines on the network change by this option."
)
_COLUMNS = {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE"}


def is_manager(client: Client) -> bool:
    """Say whether the daemon's node is a manager."""
    return client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS).manager


def visible_networks(client: Client) -> list[Network]:
    """Return the cluster's networks; on a worker, those its own containers are on."""
    if is_manager(client):
        answer = client.control.ListNetworks(
            control_pb2.ListNetworksRequest(), timeout=_CALL_SECONDS
        )
        messages: Sequence[objects_pb2.Network] = answer.networks
    else:
        local = client.local.ListLocalNetworks(
            local_pb2.ListLocalNetworksRequest(), timeout=_CALL_SECONDS
        )
        messages = [entry.network for entry in local.networks]
    networks = [codec.decode(Network, message) for message in messages]
    return sorted(
        (each for each in networks if _PREDEFINED not in each.spec.annotations.labels),
        key=lambda each: natural(each.spec.annotations.name),
    )


def resolve_network(client: Client, text: str) -> Network:
    """Return the network that an id, a name or an unambiguous id prefix means.

    Raises:
        NotFoundError: no network is called so.
        ConflictError: several are.
    """
    networks = visible_networks(client)
    return pick("network", text, networks, lambda each: (each.id, each.spec.annotations.name))


def _named(client: Client) -> list[tuple[str, str]]:
    return [(each.spec.annotations.name, driver_of(each)) for each in visible_networks(client)]


complete_networks = completer(_named)
"""Completes a name of a network."""


def driver_of(network: Network) -> str:
    """Return the name of a network's driver."""
    state = network.driver_state or network.spec.driver_config
    return state.name if state is not None and state.name else "overlay"


@click.group(cls=Aliased)
def network() -> None:
    """Manage networks."""


@network.command()
@click.argument("name", metavar="NETWORK")
@click.option("-d", "--driver", default="overlay", show_default=True)
@click.option("-o", "--opt", multiple=True, metavar="KEY[=VALUE]", help="Driver option.")
@click.option("--label", multiple=True, metavar="KEY=VALUE")
@click.option("--internal", is_flag=True, help="No way out of the network.")
@click.option("--attachable", is_flag=True, help="Containers may be attached by hand.")
@click.option("--ingress", is_flag=True, help="Make this the routing mesh's network.")
@click.option("--ipv6", is_flag=True, help="Give endpoints IPv6 addresses too.")
@click.option("--ipam-driver", default="default", show_default=True)
@click.option("--ipam-opt", multiple=True, metavar="KEY=VALUE")
@click.option("--subnet", multiple=True, metavar="CIDR")
@click.option(
    "--ip-range", multiple=True, metavar="CIDR", help="Addresses are given from this part only."
)
@click.option("--gateway", multiple=True, metavar="ADDRESS")
@click.option(
    "--aux-address", multiple=True, metavar="NAME=ADDRESS", help="Addresses never given away."
)
@click.pass_obj
def create(host: str | None, /, name: str, **flags: Any) -> None:
    """Create a network and print its id."""
    options = pairs(flags["opt"], what="--opt")
    configs = ipam_configs(
        flags["subnet"], flags["ip_range"], flags["gateway"], flags["aux_address"]
    )
    ipam_options = pairs(flags["ipam_opt"], what="--ipam-opt")
    spec = specs_pb2.NetworkSpec(
        annotations=types_pb2.Annotations(name=name, labels=pairs(flags["label"], what="--label")),
        driver_config=types_pb2.Driver(name=flags["driver"], options=options),
        ipv6_enabled=flags["ipv6"],
        internal=flags["internal"],
        attachable=flags["attachable"],
        ingress=flags["ingress"],
        ipam=types_pb2.IPAMOptions(
            driver=types_pb2.Driver(name=flags["ipam_driver"], options=ipam_options),
            configs=configs,
        ),
    )
    with connect(host) as client:
        answer = client.control.CreateNetwork(
            control_pb2.CreateNetworkRequest(spec=spec), timeout=_CALL_SECONDS
        )
    if "dsr" in options:
        click.echo(_DSR, err=True)
    click.echo(answer.network.id)


def ipam_configs(
    subnets: Sequence[str], ranges: Sequence[str], gateways: Sequence[str], auxiliary: Sequence[str]
) -> list[types_pb2.IPAMConfig]:
    """Match ranges, gateways and reserved addresses to the subnets that hold them.

    Raises:
        click.BadParameter: one is malformed or lies in no subnet given, or a subnet has two.
    """
    configs: dict[Any, types_pb2.IPAMConfig] = {}
    for text in subnets:
        net = _parse(ipaddress.ip_network, text, "--subnet")
        for other in configs:
            if other.version == net.version and other.overlaps(net):
                raise click.BadParameter(f"{net} overlaps {other}", param_hint="--subnet")
        configs[net] = types_pb2.IPAMConfig(
            family=types_pb2.IPAM_FAMILY_IPV4 if net.version == 4 else types_pb2.IPAM_FAMILY_IPV6,
            subnet=str(net),
        )

    def owner(address: Any, hint: str, text: str) -> types_pb2.IPAMConfig:
        for net, config in configs.items():
            if net.version == address.version and address in net:
                return config
        raise click.BadParameter(f"{text} lies in no --subnet given", param_hint=hint)

    for text in ranges:
        part = _parse(ipaddress.ip_network, text, "--ip-range")
        config = owner(part.network_address, "--ip-range", text)
        if config.range:
            raise click.BadParameter(
                f"two ranges in subnet {config.subnet}", param_hint="--ip-range"
            )
        config.range = str(part)
    for text in gateways:
        config = owner(_parse(ipaddress.ip_address, text, "--gateway"), "--gateway", text)
        if config.gateway:
            raise click.BadParameter(
                f"two gateways in subnet {config.subnet}", param_hint="--gateway"
            )
        config.gateway = text
    for name, text in pairs(auxiliary, what="--aux-address").items():
        owner(_parse(ipaddress.ip_address, text, "--aux-address"), "--aux-address", text).reserved[
            name
        ] = text
    return list(configs.values())


def _parse(kind: Any, text: str, hint: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=hint) from error


@network.command("ls")
@listing("dangling", "driver", "id", "label", "name", "scope", "type", whole="Print whole ids.")
@click.pass_obj
def ls(host: str | None, asked: Listing) -> None:
    """List networks; on a worker, those in use on this host."""
    with connect(host) as client:
        networks = visible_networks(client)
        used = _used(client) if "dangling" in asked.chosen else frozenset()
    rows = [
        {
            "ID": each.id if asked.whole else each.id[:_ID_CHARS],
            "Name": each.spec.annotations.name,
            "Driver": driver_of(each),
            "Scope": "swarm",
            "IPv4": "true",
            "IPv6": str(each.spec.ipv6_enabled).lower(),
            "Internal": str(each.spec.internal).lower(),
            "Labels": ",".join(f"{k}={v}" for k, v in sorted(each.spec.annotations.labels.items())),
            "CreatedAt": rfc3339(each.meta.created_at),
        }
        for each in networks
        if _matches(each, asked.chosen, used)
    ]
    asked.show(rows, _COLUMNS)


def _used(client: Client) -> frozenset[str]:
    """Return the ids of the networks that a task or a service uses; on a worker, that it has endpoints on."""
    if not is_manager(client):
        local = client.local.ListEndpoints(local_pb2.ListEndpointsRequest(), timeout=_CALL_SECONDS)
        return frozenset(each.network_id for each in local.local)
    tasks = client.control.ListTasks(control_pb2.ListTasksRequest(), timeout=_CALL_SECONDS).tasks
    services = client.control.ListServices(
        control_pb2.ListServicesRequest(), timeout=_CALL_SECONDS
    ).services
    running = types_pb2.TASK_STATE_RUNNING
    attached = {
        each.network.id
        for task in tasks
        if task.desired_state <= running and task.status.state <= running
        for each in task.networks
    }
    wanted = {
        each.target
        for service in services
        for each in (*service.spec.task.networks, *service.spec.networks)
    }
    return frozenset(attached | wanted)


def _truth(text: str) -> bool:
    if text.lower() not in {"1", "0", "true", "false"}:
        raise click.BadParameter(f"{text!r} is neither true nor false", param_hint="--filter")
    return text.lower() in {"1", "true"}


def _matches(network: Network, chosen: Mapping[str, list[str]], used: frozenset[str]) -> bool:
    dangling = network.id not in used and not network.spec.ingress
    return (
        ("dangling" not in chosen or dangling in map(_truth, chosen["dangling"]))
        # What every engine has by itself (bridge, host, none) is "builtin"; none of those is here.
        and ("type" not in chosen or "custom" in chosen["type"])
        and ("driver" not in chosen or driver_of(network) in chosen["driver"])
        and ("id" not in chosen or any(network.id.startswith(text) for text in chosen["id"]))
        and (
            "name" not in chosen
            or any(text in network.spec.annotations.name for text in chosen["name"])
        )
        and ("scope" not in chosen or "swarm" in chosen["scope"])
        and label_match(dict(network.spec.annotations.labels), chosen.get("label", []))
    )


@network.command()
@click.argument(
    "names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=complete_networks
)
@click.option("-f", "--format", "form", default="", help=FORMAT_HELP)
@click.option("-v", "--verbose", is_flag=True, help="Show endpoints on other hosts too.")
@click.pass_obj
def inspect(host: str | None, names: tuple[str, ...], form: str, verbose: bool) -> None:
    """Show networks in full: addresses, options, the containers of this host."""
    with connect(host) as client:
        found = [resolve_network(client, name) for name in names]
        known = client.local.ListEndpoints(local_pb2.ListEndpointsRequest(), timeout=_CALL_SECONDS)
    shown = [as_docker(each, endpoints_of(known, each.id), verbose=verbose) for each in found]
    print_objects(shown, form=form)


def endpoints_of(
    known: local_pb2.ListEndpointsResponse, network: str
) -> local_pb2.ListEndpointsResponse:
    """Return the endpoints on one network; none when this node has no part in it."""
    return local_pb2.ListEndpointsResponse(
        local=[each for each in known.local if each.network_id == network],
        remote=[each for each in known.remote if each.network_id == network],
    )


def as_docker(
    network: Network, endpoints: local_pb2.ListEndpointsResponse, *, verbose: bool = False
) -> dict[str, Any]:
    """Return a network as docker's API shows it."""
    ipam = network.ipam
    driver = ipam.driver if ipam is not None else None
    result: dict[str, Any] = {
        "Name": network.spec.annotations.name,
        "Id": network.id,
        "Created": rfc3339(network.meta.created_at),
        "Scope": "swarm",
        "Driver": driver_of(network),
        "EnableIPv4": True,
        "EnableIPv6": network.spec.ipv6_enabled,
        "IPAM": {
            "Driver": driver.name if driver is not None and driver.name else "default",
            "Options": dict(driver.options) if driver is not None and driver.options else None,
            "Config": [
                _ipam_config(config) for config in (ipam.configs if ipam is not None else ())
            ],
        },
        "Internal": network.spec.internal,
        "Attachable": network.spec.attachable,
        "Ingress": network.spec.ingress,
        "ConfigFrom": {"Network": network.spec.network or ""},
        "ConfigOnly": False,
        "Containers": {
            endpoint.container_id: {
                "Name": endpoint.container_name,
                "EndpointID": endpoint.endpoint_id,
                "MacAddress": endpoint.mac,
                "IPv4Address": next((text for text in endpoint.addresses if "." in text), ""),
                "IPv6Address": next((text for text in endpoint.addresses if ":" in text), ""),
            }
            for endpoint in endpoints.local
        },
        "Options": dict(network.driver_state.options) if network.driver_state is not None else {},
        "Labels": dict(network.spec.annotations.labels),
    }
    peers = sorted(
        {(remote.gossip_node, remote.vtep) for remote in endpoints.remote if remote.vtep}
    )
    if peers:
        result["Peers"] = [{"Name": name, "IP": address} for name, address in peers]
    if verbose:
        result["Endpoints"] = [
            {
                "EndpointID": remote.endpoint_id,
                "Name": remote.name,
                "Address": remote.address,
                "MacAddress": remote.mac,
                "Host": remote.vtep,
            }
            for remote in endpoints.remote
        ]
    return result


def _ipam_config(config: IPAMConfig) -> dict[str, Any]:
    result: dict[str, Any] = {"Subnet": config.subnet}
    if config.range:
        result["IPRange"] = config.range
    result["Gateway"] = config.gateway
    if config.reserved:
        result["AuxiliaryAddresses"] = dict(config.reserved)
    return result


@network.command()
@click.argument(
    "names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=complete_networks
)
@click.option("-f", "--force", is_flag=True, help="A network that does not exist is no error.")
@click.pass_obj
def rm(host: str | None, names: tuple[str, ...], force: bool) -> int:
    """Remove networks that nothing uses any more."""

    def act(client: Client, name: str) -> str:
        if not is_manager(client):
            raise PreconditionError(
                "this node is not a manager: networks are removed on a manager node"
            )
        try:
            found = resolve_network(client, name)
        except NotFoundError:
            if force:
                return ""
            raise
        request = control_pb2.RemoveNetworkRequest(network_id=found.id)
        client.control.RemoveNetwork(request, timeout=_CALL_SECONDS)
        return name

    return for_each(host, names, act)


@network.command("connect")
@click.argument("name", metavar="NETWORK", shell_complete=complete_networks)
@click.argument("container")
@click.option("--alias", multiple=True, help="Another name on this network.")
@click.option("--ip", default="", help="IPv4 address.")
@click.option("--ip6", default="", help="IPv6 address.")
@click.pass_obj
def plug_in(
    host: str | None, name: str, container: str, alias: tuple[str, ...], ip: str, ip6: str
) -> None:
    """Put a container on one more network, while it runs."""
    request = local_pb2.ConnectNetworkRequest(
        container=container,
        network=local_pb2.NetworkWish(network=name, aliases=alias, ipv4=ip, ipv6=ip6),
    )
    with connect(host) as client:
        client.local.ConnectNetwork(request, timeout=_CALL_SECONDS)


@network.command()
@click.argument("name", metavar="NETWORK", shell_complete=complete_networks)
@click.argument("container")
@click.option("-f", "--force", is_flag=True, help="Disconnect even if the manager cannot be told.")
@click.pass_obj
def disconnect(host: str | None, name: str, container: str, force: bool) -> None:
    """Take a container off a network."""
    request = local_pb2.DisconnectNetworkRequest(container=container, network=name, force=force)
    with connect(host) as client:
        client.local.DisconnectNetwork(request, timeout=_CALL_SECONDS)


_ENDPOINT_COLUMNS = {
    "Network": "NETWORK",
    "Name": "NAME",
    "Address": "ADDRESS",
    "Mac": "MAC",
    "Host": "HOST",
    "ID": "ENDPOINT ID",
}


@click.command()
@click.argument("name", metavar="[NETWORK]", required=False, default="")
@listing(whole="Print whole ids.", quiet="")
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Also the nodes' own, which have no name."
)
@click.pass_obj
def endpoints(host: str | None, name: str, asked: Listing, everything: bool) -> None:
    """List the endpoints this node knows, on this host and on others: address, MAC, host."""
    with connect(host) as client:
        answer = client.local.ListEndpoints(local_pb2.ListEndpointsRequest(), timeout=_CALL_SECONDS)
        if name:
            answer = endpoints_of(answer, resolve_network(client, name).id)
        names = {each.id: each.spec.annotations.name for each in visible_networks(client)}
        here = client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS).data_path_addr
    rows = [
        {
            "Network": each.network_name,
            "Name": each.container_name,
            "Address": ", ".join(each.addresses),
            "Mac": each.mac,
            "Host": here,
            "Local": True,
            "ID": each.endpoint_id if asked.whole else each.endpoint_id[:_ID_CHARS],
        }
        for each in answer.local
    ] + [
        {
            "Network": names.get(each.network_id, each.network_id[:_ID_CHARS]),
            "Name": each.name,
            "Address": each.address,
            "Mac": each.mac,
            "Host": each.vtep,
            "Local": False,
            "ID": each.endpoint_id if asked.whole else each.endpoint_id[:_ID_CHARS],
        }
        for each in answer.remote
    ]
    rows = [row for row in rows if row["Name"] or everything]
    rows.sort(key=lambda row: (natural(str(row["Network"])), natural(str(row["Address"]))))
    asked.show(rows, _ENDPOINT_COLUMNS)
