"""What happens to a world of managers from its birth to its recovery."""

from __future__ import annotations

from support.managers.administrator import Administrator
from support.managers.cluster import ClusterWorld, simulated
from support.managers.trouble import Trouble

PACES = ((50, 300), (100, 500), (200, 1000))
"""Time between two faults of a wave (milliseconds)."""
WAVE, CALM = (300, 3000), (300, 2500)
"""How long a wave of faults lasts, and how long all is well (milliseconds). Managers need some peace
to get anything done, and what was done in peace is what the next wave endangers."""


def simulate(seed: int, *, duration: int = 12_000) -> ClusterWorld:
    """Run one seed from birth to recovery; raises AssertionError naming what broke.

    Two seeds of ten resize the group from 1 to 3, 5 and 3 voters under load and faults; one of ten
    restores a member from an old copy of its disk; in all others membership changes at random.
    """
    with simulated(seed):
        world = ClusterWorld(seed, voters=(1, 2, 3, 3, 3, 5, 5)[seed % 7], size=7)
        world.found()
        administrator = Administrator(world)
        if seed % 10 == 7 or seed % 10 == 8:
            trouble = Trouble(world, changes=False, paces=PACES)
            administrator.begin(lambda: administrator.resize(1, 3, 5, 3))
        elif seed % 10 == 9:
            administrator.begin(lambda: administrator.resize(3))
            world.clock.run(2_000)
            trouble = Trouble(world, changes=False, crashes=False, paces=PACES)
            administrator.begin(administrator.restore_old_copy)
        else:
            trouble = Trouble(world, paces=PACES)
            for _ in range(4):
                world.grow_or_shrink()
                world.clock.run(400)
        trouble.start()
        end = world.clock.now + duration
        while world.clock.now < end:
            trouble.on = True
            world.clock.run(world.rng.randrange(*WAVE))
            trouble.on = False
            world.heal()
            world.clock.run(world.rng.randrange(*CALM))
        trouble.over = True
        for _ in range(60):
            world.clock.run(500)
            if administrator.done and not world.clients.busy and world.recovered():
                break
        assert administrator.done, "administration never ends after everything is healed"
        world.check_recovered()
        return world
