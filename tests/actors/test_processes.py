"""Failures of remote calls arrive typed, and say who failed; nothing waits without a deadline."""

import asyncio
import os

import pytest
import ray
from ray.exceptions import ActorUnavailableError, ObjectReconstructionFailedError

from negalign_ray.actors.processes import split_name, typed, wait_until_ready, within
from negalign_ray.errors import DiedError, LostObjectError, RoleError, ScoreError, StallError, WeightUpdateError

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]


@ray.remote(num_cpus=0)
class Moody:
    def __init__(self, fail: bool = False):
        if fail:
            raise ValueError("no such model")

    def ready(self):
        return "yes"

    def update(self):
        raise WeightUpdateError("checksum differs", role="sampler")

    def crash(self):
        raise RuntimeError("out of memory")

    def read(self):
        raise ObjectReconstructionFailedError("ab", None, "")  # Ray does so where an argument of the call is gone

    def die(self):
        os._exit(1)

    def score(self):
        raise ScoreError("HTTP 500", role="scorer")


def call(reference, *, deadline_s=20.0, role="sampler", rank=3, version=7):
    awaited = within(reference, deadline_s=deadline_s, setting="sample_s", role=role, rank=rank, version=version)
    return asyncio.run(awaited)


def test_an_answer_passes_through():
    actor = Moody.remote()
    assert call(actor.ready.remote()) == "yes"


def test_a_typed_failure_gets_the_rank_and_version_of_the_call():
    with pytest.raises(WeightUpdateError, match=r"^sampler\[3\] v7: checksum differs$"):
        call(Moody.remote().update.remote())


def test_an_untyped_failure_becomes_a_role_error_with_its_reason():
    with pytest.raises(RoleError, match=r"sampler\[3\] v7: RuntimeError\('out of memory'\); see this role's file"):
        call(Moody.remote().crash.remote())


def test_an_error_of_another_role_keeps_its_own_name():
    with pytest.raises(ScoreError, match=r"^scorer\[0\]: HTTP 500$"):
        call(Moody.remote().score.remote(), role="conductor")


def test_a_dead_actor_is_named_with_ray_s_reason():
    with pytest.raises(RoleError, match=r"sampler\[3\] v7: The actor died"):
        call(Moody.remote().die.remote())


def test_what_went_down_with_its_node_is_no_failure_of_those_who_were_to_read_it():
    with pytest.raises(LostObjectError, match=r"^sampler\[3\] v7: what it was to read is gone with the node"):
        call(Moody.remote().read.remote())


def test_an_actor_out_of_reach_is_one_that_died_whatever_the_network_said():
    error = typed(ActorUnavailableError("RPC error: 14", None), role="learner", rank=1)
    assert isinstance(error, DiedError)
    assert str(error).startswith("learner[1]: its process cannot be reached: it has died, or its node is lost")


def test_a_missed_deadline_names_the_setting_that_bounds_it():
    async def never():
        await asyncio.sleep(60)

    with pytest.raises(StallError, match=r"sampler\[3\] v7: no answer within deadlines\.sample_s=0\.05 s"):
        call(never(), deadline_s=0.05)


def test_a_role_that_fails_to_start_says_why():
    with pytest.raises(RoleError, match=r"reference\[1\]: .*no such model"):
        wait_until_ready({"reference-1": Moody.remote(fail=True).ready.remote()}, deadline_s=30)


def test_roles_that_never_get_a_place_are_named_with_what_is_free():
    waiting = Moody.options(num_cpus=1000).remote()
    with pytest.raises(StallError, match=r"sampler\[2\]: not ready within deadlines\.start_s=0\.5 s.*sampler-2.*CPU"):
        wait_until_ready({"sampler-2": waiting.ready.remote()}, deadline_s=0.5)
    ray.kill(waiting)


def test_role_names_split_into_role_and_rank():
    assert split_name("sampler-12") == ("sampler", 12)


def test_typed_keeps_only_the_last_line_of_a_constructor_s_traceback():
    actor = Moody.remote(fail=True)
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(actor.ready.remote())
    assert "\n" not in str(typed(caught.value, role="scorer", rank=0))
