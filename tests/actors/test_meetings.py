"""Who is in the NCCL group of an update, and when a new one is formed. No Ray, no GPU."""

import asyncio

import pytest

from negalign_ray.actors.meetings import MOST_FAILURES, Meetings
from negalign_ray.engines.weight_transfer import WIRE, Meeting, Offer


def offer(version: int, way: str = "nccl") -> Offer:
    return Offer(version, version, 4, way, update={}, address="10.0.0.1", port=5000 + version)


async def hold(meetings: Meetings, version: int, members: dict[int, str], *, failing: bool = False, way: str = "nccl"):
    """An update of those samplers: the offer that was published, and every sampler's parcel."""
    published, parcels = [], {}

    async def publish(kept: Offer | None) -> None:
        published.append(kept)
        if kept is None:
            return
        if kept.together:
            meetings.call(members, kept)
        parcels.update({rank: meetings.parcel(rank, kept) for rank in members})
        if failing:
            meetings.failed()

    await meetings.hold(offer(version, way), publish)
    return published[0], parcels


def run(scenario):
    return asyncio.run(scenario())


def test_the_learner_is_rank_0_and_every_worker_of_every_sampler_has_a_rank_of_its_own():
    async def scenario():
        meetings = Meetings(workers_per_sampler=2)
        learner = asyncio.create_task(meetings.of(1))
        _, parcels = await hold(meetings, 1, {0: "a", 3: "b"})
        assert await learner == Meeting(number=1, world_size=5, address="10.0.0.1", port=5001)
        assert [parcels[rank].join["rank_offset"] for rank in (0, 3)] == [1, 3]
        for parcel in parcels.values():
            assert parcel.join | WIRE == parcel.join, "both sides pack alike"
            assert (parcel.join["master_address"], parcel.join["master_port"]) == ("10.0.0.1", 5001)
            assert parcel.join["world_size"] == 5

    run(scenario)


def test_a_group_stands_as_long_as_the_crew_does():
    async def scenario():
        meetings = Meetings(workers_per_sampler=1)
        await hold(meetings, 1, {0: "a", 1: "b"})
        _, again = await hold(meetings, 2, {0: "a", 1: "b"})
        assert [parcel.join for parcel in again.values()] == [None, None]
        assert await meetings.of(2) == await meetings.of(1), "the learner sends to the group that it has"
        _, fewer = await hold(meetings, 3, {1: "b"})
        assert fewer[1].join["rank_offset"] == 1
        _, replaced = await hold(meetings, 4, {1: "c"})
        assert replaced[1].join["master_port"] == 5004
        assert [(await meetings.of(version)).number for version in (3, 4)] == [2, 3]

    run(scenario)


def test_after_a_failure_the_same_crew_forms_a_new_group():
    async def scenario():
        meetings = Meetings(workers_per_sampler=1)
        await hold(meetings, 1, {0: "a"}, failing=True)
        _, parcels = await hold(meetings, 2, {0: "a"})
        assert parcels[0].join is not None
        _, parcels = await hold(meetings, 3, {0: "a"})
        assert parcels[0].join is None

    run(scenario)


@pytest.mark.parametrize("way", ["nccl", "ipc"])
def test_failures_in_a_row_leave_the_rest_of_the_run_to_the_object_store(way):
    async def scenario():
        meetings = Meetings(workers_per_sampler=1)
        for version in (1, 2, 3):  # one that works begins the count anew
            kept, _ = await hold(meetings, version, {0: "a"}, failing=version != 2, way=way)
            assert kept is not None
        for version in range(4, 4 + MOST_FAILURES - 1):
            await hold(meetings, version, {0: "a"}, failing=True, way=way)
        kept, _ = await hold(meetings, 9, {0: "a"}, way=way)
        assert kept is None
        if way == "nccl":
            assert await meetings.of(9) is None, "and the learner is told"

    run(scenario)


def test_the_learner_is_told_when_an_update_ends_without_a_meeting():
    async def scenario():
        meetings = Meetings(workers_per_sampler=1)
        learner = asyncio.create_task(meetings.of(1))

        async def superseded(kept: Offer | None) -> None:
            pass

        async def broken(kept: Offer | None) -> None:
            raise RuntimeError

        await meetings.hold(offer(1), superseded)
        with pytest.raises(RuntimeError):
            await meetings.hold(offer(2), broken)
        assert (await learner, await meetings.of(2)) == (None, None)

    run(scenario)


def test_an_answer_that_the_learner_has_read_is_not_kept():
    async def scenario():
        meetings = Meetings(workers_per_sampler=1)
        for version in (1, 2, 3):

            async def publish(kept: Offer, version: int = version) -> None:
                meetings.call({0: "a"}, kept)
                assert await meetings.of(version) is not None  # the learner asks while samplers wait for it

            await meetings.hold(offer(version), publish)
        assert meetings._answers == {}

    run(scenario)


def test_without_an_offer_nothing_is_kept():
    async def scenario():
        meetings, seen = Meetings(workers_per_sampler=1), []

        async def publish(kept: Offer | None) -> None:
            seen.append(kept)

        await meetings.hold(None, publish)
        await hold(meetings, 1, {0: "a", 1: "b"}, way="ipc")
        assert seen == [None]
        assert meetings._answers == {}

    run(scenario)


def test_ipc_parcels_say_that_the_engine_is_to_be_set_up_without_a_group():
    async def scenario():
        _, parcels = await hold(Meetings(workers_per_sampler=1), 1, {0: "a", 1: "b"}, way="ipc")
        assert [parcel.join for parcel in parcels.values()] == [{}, {}]

    run(scenario)
