"""A checkpoint that fails ends the run with a typed error, whatever the reason."""

import asyncio
import json
import shutil
import threading

import pytest
from ray.exceptions import ObjectLostError

from negalign_ray.actors.sealing import Sealer
from negalign_ray.errors import CheckpointError, LostObjectError, NegalignError
from negalign_ray.events import forget
from tests.actors.test_find_checkpoint import run  # noqa: F401  # a fixture
from tests.loops.fakes import FakeFleet
from tests.loops.test_rollout import make_rollout


def seal(config, *, error: Exception | None) -> NegalignError | None:
    """What the run ends with when its groups cannot be fetched for `error`."""

    def fetch(references):
        if error is not None:
            raise error
        return references

    async def begin() -> NegalignError | None:
        rollout = make_rollout(FakeFleet(), num_steps=2)
        sealer = Sealer(config, record=forget, fetch=fetch)
        await asyncio.wait([sealer.begin(rollout, 0, metrics={}, replicas={})])
        return rollout.fatal

    shutil.rmtree(config.run_dir / "checkpoints")  # newer ones
    (config.run_dir / "checkpoints" / ".step-00000000.partial").mkdir(parents=True)  # as the learners leave it
    return asyncio.run(begin())


def test_a_checkpoint_holds_the_prices_of_its_own_snapshot_however_long_the_one_before_it_takes(run):  # noqa: F811
    shutil.rmtree(run.run_dir / "checkpoints")
    for step in (0, 1):
        (run.run_dir / "checkpoints" / f".step-{step:08d}.partial").mkdir(parents=True)
    may_go_on = threading.Event()

    class SelfPlay(FakeFleet):
        version = 0

        async def remembered(self):
            return {"prices of": self.version}

    def fetch(references):
        assert may_go_on.wait(timeout=60)
        return references

    async def begin() -> None:
        fleet = SelfPlay()
        rollout = make_rollout(fleet, num_steps=2)
        sealer = Sealer(run, record=forget, fetch=fetch)
        tasks = [sealer.begin(rollout, step, metrics={}, replicas={}) for step in (0, 1)]
        await asyncio.sleep(0.05)
        fleet.version = 1
        may_go_on.set()
        await asyncio.wait(tasks)
        assert rollout.fatal is None

    asyncio.run(begin())
    for step in (0, 1):
        state = json.loads((run.run_dir / "checkpoints" / f"step-{step:08d}" / "rollout.json").read_text())
        assert state["fleet"] == {"prices of": 0}


def test_a_checkpoint_whose_groups_are_there_is_sealed_and_ends_nothing(run):  # noqa: F811
    assert seal(run, error=None) is None
    assert (run.run_dir / "checkpoints" / "step-00000000").is_dir()


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ObjectLostError("ab", None, ""), LostObjectError, r"conductor\[0\]: what it was to read is gone"),
        (ValueError("nan"), CheckpointError, r"the checkpoint of step 0 could not be written: ValueError\('nan'\)"),
        (OSError("full"), CheckpointError, "the checkpoint of step 0 could not be written: full; free some space"),
    ],
)
def test_whatever_goes_wrong_with_a_checkpoint_ends_the_run(run, error, kind, said):  # noqa: F811
    fatal = seal(run, error=error)
    assert type(fatal) is kind
    with pytest.raises(kind, match=said):
        raise fatal
