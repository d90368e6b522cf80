"""The work that all sections share: orders as the conductor writes them, and groups as a learner gets them."""

import random
from collections.abc import Sequence
from dataclasses import replace

from negalign_ray.actors.plan import Plan
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.records import Group, Order, Prompt, Response, Role, TokenIds


def order_factory(plan: Plan, *, num_samples: int) -> OrderFactory:
    """Orders for the training prompts under the run's instructions."""
    chat = plan.chat()

    def context_ids(prompt: Prompt, instruction: str | None) -> TokenIds:
        return chat.prompt_ids(prompt.messages, instruction)

    return OrderFactory(
        plan.data.train,
        instructions=plan.instructions,
        num_samples=num_samples,
        seed=plan.config.run.seed,
        context_ids=context_ids,
    )


def next_orders(factory: OrderFactory, count: int) -> list[Order]:
    return [factory.next_order() for _ in range(count)]


def groups_of_tokens(
    prompts: Sequence[Prompt], *, min_tokens: int, num_samples: int, new_tokens: int, vocab_size: int
) -> list[Group]:
    """Real prompts and human answers, and samples of random tokens (a learner's work depends on lengths alone), until
    `min_tokens` are reached. Reference log-probs are made up."""
    rng = random.Random(0)
    groups: list[Group] = []
    while sum(group.num_tokens for group in groups) < min_tokens:
        prompt = prompts[len(groups) % len(prompts)]
        samples = [
            Response(Role.SAMPLE, tuple(rng.randrange(3, vocab_size) for _ in range(new_tokens)), text="")
            for _ in range(num_samples)
        ]
        responses = tuple(_priced(response) for response in (*prompt.responses, *samples))
        groups.append(Group(len(groups), prompt, responses))
    return groups


def _priced(response: Response) -> Response:
    per_token = -3.0
    logprob = per_token * len(response.token_ids)
    return replace(response, ref_logprobs={"rpos": logprob, "rneg": logprob})
