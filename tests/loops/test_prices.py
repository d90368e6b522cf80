"""Nothing is priced twice by one model: not in one call, not in two, and not by two actors of a pool."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.prices import PriceMemory, price_by_prompt, prices_of, rank_of
from negalign_ray.loops.roles import StageResult
from negalign_ray.records import Group, Prompt, Response, Role


def group(order_id: int, prompt_id: int, *answers: tuple[int, ...]) -> Group:
    responses = tuple(Response(Role.SAMPLE, answer, "", ref_logprobs={"other": -9.0}) for answer in answers)
    return Group(order_id, Prompt(prompt_id, "", (), (1, prompt_id), ()), responses)


class Model:
    """The log-prob of an answer is minus the sum of its tokens; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def response_logprobs(self, groups):
        self.asked += [(g.prompt.prompt_id, response.token_ids) for g in groups for response in g.responses]
        return [[-float(sum(response.token_ids)) for response in g.responses] for g in groups]


def price(memory: PriceMemory, model: Model, *groups: Group):
    return memory.price(groups, names=("rpos", "rneg"), compute=model.response_logprobs)


def test_prices_of_other_weights_are_not_taken_up():
    kept = json.loads(json.dumps([(3, {"aa": -1.0}), (6, {"aa": -2.0}), (None, {"bb": -3.0}), (3, {"cc": -4.0})]))
    assert prices_of(kept, version=3) == {"aa": -1.0, "cc": -4.0}
    assert prices_of(kept, version=0) == {}


def test_prices_that_were_saved_are_remembered_in_the_order_in_which_they_are_forgotten():
    first, second = PriceMemory(max_prices=3), PriceMemory(max_prices=3)
    price(first, Model(), group(0, 5, (1,), (2,), (3,)))
    price(first, Model(), group(1, 5, (1,)))  # used again: (2,) is the longest unused now
    second.remember(json.loads(json.dumps(first.entries())))
    model = Model()
    price(second, model, group(2, 5, (4,)))
    assert price(second, model, group(3, 5, (1,), (3,), (4,))).num_remembered == 3
    assert price(second, model, group(4, 5, (2,))).num_remembered == 0
    assert model.asked == [(5, (4,)), (5, (2,))]


def test_a_token_may_move_from_the_prompt_to_the_answer_without_being_taken_for_the_same():
    memory, model = PriceMemory(max_prices=9), Model()
    longer = replace(group(0, 5, (2,)), prompt=Prompt(5, "", (), (1, 5, 7), ()))
    price(memory, model, longer, group(1, 5, (7, 2)))
    assert len(model.asked) == 2


def test_every_response_gets_its_price_under_every_name_and_keeps_the_other_model_s():
    priced = price(PriceMemory(max_prices=9), Model(), group(0, 5, (3, 4), (6,)))
    assert [r.ref_logprobs for r in priced.groups[0].responses] == [
        {"other": -9.0, "rpos": -7.0, "rneg": -7.0}, {"other": -9.0, "rpos": -6.0, "rneg": -6.0}
    ]  # fmt: skip


def test_equal_responses_to_equal_prompts_of_one_call_are_computed_once():
    model = Model()
    priced = price(
        PriceMemory(max_prices=9), model, group(0, 5, (3,), (3,)), group(1, 5, (4,), (3,)), group(2, 6, (3,))
    )
    assert model.asked == [(5, (3,)), (5, (4,)), (6, (3,))]
    assert (priced.num_prices, priced.num_remembered) == (5, 2)
    assert priced.num_tokens == (2 + 1) + (2 + 1) + (2 + 1), "each part reads its prompt"
    assert [[r.ref_logprobs["rpos"] for r in g.responses] for g in priced.groups] == [[-3, -3], [-4, -3], [-3]]


def test_a_second_call_computes_what_is_new_and_a_changed_model_everything():
    memory, model = PriceMemory(max_prices=9), Model()
    price(memory, model, group(0, 5, (3,)))
    second = price(memory, model, group(1, 5, (3,), (4,)))
    assert (second.num_prices, second.num_remembered, second.num_tokens) == (2, 1, 3)
    assert price(memory, model, group(2, 5, (3,), (4,))).num_tokens == 0
    memory.forget()
    assert price(memory, model, group(3, 5, (3,), (4,))).num_remembered == 0


def test_what_was_unused_for_longest_is_forgotten_first():
    memory, model = PriceMemory(max_prices=2), Model()
    price(memory, model, group(0, 5, (3,), (4,)))
    price(memory, model, group(1, 5, (3,)))  # used again
    price(memory, model, group(2, 5, (6,)))  # so (4,) goes
    model.asked.clear()
    price(memory, model, group(3, 5, (3,), (6,), (4,)))
    assert model.asked == [(5, (4,))]


def test_a_memory_of_no_size_prices_all_the_same():
    assert price(PriceMemory(max_prices=0), Model(), group(0, 5, (3,), (3,))).num_remembered == 1


def ask_pool(groups: list[Group], memories: list[PriceMemory], models: list[Model]) -> StageResult:
    """One wave through a pool of references."""

    async def ask(rank: int, handles) -> StageResult:
        priced = price(memories[rank], models[rank], *(handle.ref for handle in handles))
        await asyncio.sleep(0)
        handles = tuple(Handle(g, g.card()) for g in priced.groups)
        return StageResult(handles, rank + 1.0, priced.num_tokens, priced.num_prices, priced.num_remembered)

    handles = [Handle(g, g.card()) for g in groups]
    return asyncio.run(price_by_prompt(handles, num_ranks=len(memories), ask=ask))


@given(num_ranks=st.integers(1, 4), waves=st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=5))
def test_a_pool_of_any_size_prices_each_response_once_over_all_waves_and_keeps_their_order(num_ranks, waves):
    memories, models = [PriceMemory(max_prices=99) for _ in range(num_ranks)], [Model() for _ in range(num_ranks)]
    for wave in waves:
        result = ask_pool([group(i, prompt_id, (prompt_id,)) for i, prompt_id in enumerate(wave)], memories, models)
        assert [h.ref.order_id for h in result.handles] == list(range(len(wave)))
        assert [h.ref.responses[0].ref_logprobs["rpos"] for h in result.handles] == [-float(p) for p in wave]
        assert result.num_prices == len(wave)
    asked = [pair for model in models for pair in model.asked]
    assert len(asked) == len(set(asked)), "the second actor does not price what the first one remembers"


def test_the_parts_work_side_by_side_so_a_wave_takes_as_long_as_the_busiest_part():
    ranks = {rank_of(prompt_id, num_ranks=2) for prompt_id in range(8)}
    assert ranks == {0, 1}
    memories, models = [PriceMemory(max_prices=99) for _ in range(2)], [Model(), Model()]
    result = ask_pool([group(i, i, (i,)) for i in range(8)], memories, models)
    assert result.busy_s == 2.0, "not 1 + 2"
    assert result.num_tokens == 8 * 3


def test_prompts_are_dealt_evenly_also_when_every_second_one_is_of_another_kind():
    for num_ranks in (2, 3, 5):
        for prompts in (range(1200), range(0, 2400, 2)):
            share = Counter(rank_of(prompt_id, num_ranks=num_ranks) for prompt_id in prompts)
            assert all(abs(count - 1200 / num_ranks) < 0.1 * 1200 / num_ranks for count in share.values())
