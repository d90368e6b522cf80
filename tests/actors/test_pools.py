"""Actors of a role that come and go while others call them; nothing of Ray is started."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from negalign_ray.actors import pools
from negalign_ray.actors.packing import Placement
from negalign_ray.actors.pools import Pool, PoolTeam
from negalign_ray.actors.starting import SameStart
from negalign_ray.errors import DiedError, PlacementError, RoleError, WeightUpdateError
from negalign_ray.loops.prices import price_by_prompt
from negalign_ray.loops.roles import StageResult
from negalign_ray.loops.watchdog import ActivityBook


class FakeReservations:
    """Room for some actors; `down` holds the seats whose node is gone."""

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.held: set[str] = set()
        self.down: set[str] = set()
        self.renewed: list[str] = []

    def take(self, wanted) -> None:
        if len(self.held) + len(wanted) > self.room:
            raise PlacementError("no place")
        self.held |= set(wanted)

    def options(self, name: str) -> dict[str, str]:
        assert name in self.held, "an actor starts where room is held for it"
        return {"scheduling_strategy": name}

    def nodes(self, name: str) -> frozenset[str] | None:
        return None if name in self.down else frozenset({"here"})

    def renew(self, name: str) -> None:
        self.renewed.append(name)
        if name in self.down:
            self.down.remove(name)
            self.held.discard(name)
            self.take({name: None})

    def give_back(self, name: str) -> None:
        self.held.discard(name)


class FakeActor:
    """`answer` is what `ready` gives, or raises."""

    def __init__(self, rank: int, answer: object = True) -> None:
        self.rank, self.alive, self._answer = rank, True, answer
        self.ready = self  # ready.remote() is all that a pool calls

    async def remote(self) -> object:
        await asyncio.sleep(0)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Stage:
    """Makes actors, and remembers them in the order in which they came."""

    def __init__(self, *answers: object) -> None:
        self.made: list[FakeActor] = []
        self._answers = list(answers)

    def make(self, rank: int, **options: object) -> FakeActor:
        self.made.append(FakeActor(rank, self._answers.pop(0) if self._answers else True))
        return self.made[-1]

    def kill(self, actor: FakeActor) -> None:
        actor.alive = False


async def within(setting: str, call, role: str, rank: int) -> object:
    assert setting == "start_s"
    return await call


def make_pool(num: int, *, stage: Stage, held: FakeReservations, name: str = "scorer") -> Pool:
    place = Placement("scorer", num, cpus=1.0, gpus=0.0, threads=1)
    pool = Pool(
        name, place, stage.make, num=num, reservations=held, book=ActivityBook(), within=within, kill=stage.kill
    )  # type: ignore[arg-type]
    held.take(pool.bundles(pool.ranks))
    for rank in pool.ranks:
        pool.actors[rank] = stage.make(rank)
    return pool


def make_team(*pools: Pool, updating: asyncio.Lock | None = None, caught_up: list | None = None) -> PoolTeam:
    async def catch_up(pool: Pool, rank: int) -> None:
        if caught_up is not None:
            caught_up.append((pool.name, rank))

    return PoolTeam(pools, catch_up=catch_up, updating=updating or asyncio.Lock())


async def picked(pool: Pool, num: int) -> list[int]:
    ranks = []
    for _ in range(num):
        async with pool.use() as rank:
            ranks.append(rank)
    return ranks


def test_calls_take_turns_over_those_who_serve_whatever_their_ranks():
    async def scenario() -> None:
        pool = make_pool(3, stage=Stage(), held=FakeReservations())
        assert await picked(pool, 4) == [0, 1, 2, 0]
        await pool.leave(1)
        assert await picked(pool, 4) == [0, 2, 0, 2]
        async with pool.use(1) as rank:
            assert rank == 2, "who asks for one that has left gets another"

    asyncio.run(scenario())


def test_one_more_is_asked_only_when_it_is_ready_and_like_the_others():
    async def scenario() -> None:
        stage, held, updating, caught_up = Stage(), FakeReservations(), asyncio.Lock(), []
        pool = make_pool(1, stage=stage, held=held)
        team = make_team(pool, updating=updating, caught_up=caught_up)
        async with updating:  # the references get a snapshot
            joining = asyncio.create_task(team.join(1))
            await asyncio.sleep(0.05)
            assert stage.made[-1].rank == 1, "it has started"
            assert (team.ranks, caught_up) == ((0,), [])
        await joining
        assert (team.ranks, caught_up) == ((0, 1), [("scorer", 1)])
        assert held.held == {"scorer-0", "scorer-1"}

    asyncio.run(scenario())


def test_one_that_leaves_ends_its_calls_first_and_gives_its_room_back():
    async def scenario() -> None:
        stage, held = Stage(), FakeReservations()
        pool = make_pool(2, stage=stage, held=held)
        async with pool.use(1), pool.use(1):
            leaving = asyncio.create_task(make_team(pool).leave(1))
            await asyncio.sleep(0.01)
            assert await picked(pool, 2) == [0, 0], "nothing new comes to it"
            assert stage.made[1].alive
        await leaving
        assert not stage.made[1].alive
        assert (held.held, list(pool.actors)) == ({"scorer-0"}, [0])

    asyncio.run(scenario())


def test_a_call_waits_for_the_one_that_is_being_replaced_and_goes_to_another_where_that_fails():
    async def scenario() -> None:
        pool = make_pool(2, stage=Stage(), held=FakeReservations())
        for fails, expected in ((False, 1), (True, 0)):
            async with pool.repair(1):
                asked = asyncio.create_task(anext(aiter_of(pool, 1)))
                await asyncio.sleep(0.01)
                assert not asked.done()
                if fails:
                    pool.expel(1)
            assert await asked == expected

    asyncio.run(scenario())


async def aiter_of(pool: Pool, rank: int) -> AsyncIterator[int]:
    async with pool.use(rank) as got:
        yield got


def test_two_pools_of_references_grow_together_or_not_at_all():
    async def scenario() -> None:
        stage, held = Stage(), FakeReservations(room=3)
        pools = [make_pool(1, stage=stage, held=held, name=name) for name in ("reference-rpos", "reference-rneg")]
        team = make_team(*pools)
        with pytest.raises(PlacementError):
            await team.join(1)
        assert held.held == {"reference-rpos-0", "reference-rneg-0"}
        assert [actor.alive for actor in stage.made] == [True, True, False]
        held.room = 4
        await team.join(1)
        assert [pool.ranks for pool in pools] == [(0, 1), (0, 1)]
        await team.leave(0)
        assert held.held == {"reference-rpos-1", "reference-rneg-1"}

    asyncio.run(scenario())


def test_a_rank_that_one_pool_has_lost_comes_back_there_and_the_other_pool_s_serves_on():
    async def scenario() -> None:
        stage, held = Stage(), FakeReservations()
        pools = [make_pool(2, stage=stage, held=held, name=f"reference-{name}") for name in ("rpos", "rneg")]
        team = make_team(*pools)
        pools[0].expel(1)
        assert team.ranks == (0,)
        held.room = 3
        with pytest.raises(PlacementError):
            await team.join(1)
        assert (pools[1].ranks, stage.made[3].alive) == ((0, 1), True), "what serves is not touched"
        held.room = 4
        await team.join(1)
        assert [pool.ranks for pool in pools] == [(0, 1), (0, 1)]
        assert len(stage.made) == 5
        assert team.ranks == (0, 1)

    asyncio.run(scenario())


def test_one_that_dies_while_its_node_goes_down_starts_elsewhere():
    async def scenario() -> None:
        held = FakeReservations()
        stage = Stage(True, RoleError("the node is gone", role="scorer"), True)
        pool = make_pool(1, stage=stage, held=held)

        held.nodes = lambda name: frozenset({"here"}) if len(stage.made) != 2 else None
        await pool.come_up(0)
        assert [actor.alive for actor in stage.made] == [False, False, True]
        assert held.renewed == ["scorer-0", "scorer-0"]

    asyncio.run(scenario())


@pytest.mark.parametrize("then", [None, frozenset({"there"})], ids=["gone", "moved by Ray"])
@pytest.mark.parametrize("died", [True, False])
def test_a_death_is_known_before_that_of_its_node_and_only_then_the_node_is_watched(monkeypatch, died, then):
    monkeypatch.setattr(pools, "LOOK_EVERY_S", 0.0)

    async def scenario() -> None:
        held = FakeReservations()
        failure = (DiedError if died else RoleError)("The actor died", role="scorer")
        pool = make_pool(1, stage=Stage(True, failure, True), held=held)
        here = frozenset({"here"})
        looks = iter([here, here, here, then])
        held.nodes = lambda name: next(looks, here)
        if died:
            await pool.come_up(0)
            assert held.renewed == ["scorer-0", "scorer-0"]
        else:
            with pytest.raises(RoleError, match="The actor died"):
                await pool.come_up(0)
            assert held.renewed == ["scorer-0"]

    asyncio.run(scenario())


def test_one_that_fails_where_its_node_lives_is_a_failure():
    async def scenario() -> None:
        pool = make_pool(1, stage=Stage(True, RoleError("no such model", role="scorer")), held=FakeReservations())
        with pytest.raises(RoleError, match="no such model"):
            await pool.come_up(0)

    asyncio.run(scenario())


def test_a_first_answer_can_be_refused():
    async def scenario() -> None:
        pool = make_pool(1, stage=Stage(True, 17), held=FakeReservations())
        seen = []
        pool.confirm = lambda rank, answer: seen.append((rank, answer))
        await pool.come_up(0)
        assert seen == [(0, 17)]

    asyncio.run(scenario())


def test_a_sampler_whose_node_has_other_files_of_the_model_is_refused():
    start = SameStart()
    for rank in (0, 1):
        start.confirm(rank, 0xAB)
    with pytest.raises(WeightUpdateError, match=r"sampler\[2\] v0: .*00000000000000ac there.*00000000000000ab on the"):
        start.confirm(2, 0xAC)


def test_prompts_go_to_the_ranks_that_there_are():
    """As the fleet asks references: the number of ranks deals prompts out, and each number stands for a rank."""

    async def scenario() -> None:
        pool = make_pool(3, stage=Stage(), held=FakeReservations())
        await pool.leave(0)
        ranks, asked = pool.ranks, []

        async def ask(number: int, handles) -> StageResult:
            asked.append(ranks[number])
            return StageResult(tuple(handles), busy_s=0.0)

        handles = [Card(prompt_id) for prompt_id in range(20)]
        result = await price_by_prompt(handles, num_ranks=len(ranks), ask=ask)  # type: ignore[arg-type]
        assert list(result.handles) == handles
        assert sorted(asked) == [1, 2]

    asyncio.run(scenario())


class Card:
    """A handle of which only the prompt is looked at."""

    def __init__(self, prompt_id: int) -> None:
        self.prompt_id = prompt_id

    @property
    def card(self) -> "Card":
        return self
