"""Replicas are processes, and each orders its sets in its own way; that must not show."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib
from manager.store import Store, TableId
from manager.store.entry import Action, Attempt, Edit, dump_attempt, dump_entry
from swarm.api import codec
from swarm.model import (Annotations, Driver, IPAMConfig, IPAMOptions, Network, NetworkAttachment,
                         NetworkSpec, Task)

VNIS = "com.docker.network.driver.overlay.vxlanid_list"

def network(name, vnis, *subnets):
    return Network(
        id="id-" + name,
        spec=NetworkSpec(annotations=Annotations(name=name.rstrip("2"))),
        driver_state=Driver(name="overlay", options={VNIS: vnis}),
        ipam=IPAMOptions(configs=tuple(IPAMConfig(subnet=each) for each in subnets)),
    )

def task(name, *addresses):
    return Task(id=name, networks=(
        NetworkAttachment(network=Network(id="id-web"), addresses=addresses),))

store = Store(clock_ns=lambda: 1)

def create(index, table, item):
    edit = Edit(action=Action.CREATE, table=table, id=item.id, data=codec.dumps(item))
    attempt = Attempt(id=item.id.encode(), time=1, edits=(edit,))
    print(store.apply(index, dump_entry([dump_attempt(attempt)]))[0])

SUBNETS = tuple(f"10.0.{i}.0/24" for i in range(8))
ADDRESSES = tuple(f"10.0.{i}.5/24" for i in range(8))
create(1, TableId.NETWORK, network("web", "4097,4098,4099", *SUBNETS))
create(2, TableId.TASK, task("t1", *ADDRESSES))
create(3, TableId.NETWORK, network("web2", "4099,4098,4097", "10.1.0.0/24"))
create(4, TableId.NETWORK, network("db", "5000", *SUBNETS))
create(5, TableId.TASK, task("t2", *ADDRESSES))
print(hashlib.sha256(store.snapshot()).hexdigest())
"""


@pytest.mark.slow
def test_replicas_refuse_for_the_same_reason() -> None:
    """Of several claims that are taken, every replica names the same one, and remembers it."""
    told = set()
    for seed in ("1", "3", "4", "5"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        )
        told.add(done.stdout)
    assert len(told) == 1
