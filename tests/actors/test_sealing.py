"""A checkpoint that fails ends the run with a typed error, whatever the reason."""

import asyncio
import shutil

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
