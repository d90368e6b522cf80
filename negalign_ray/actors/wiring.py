"""The rollout loop as a plan wants it: the conductor puts Ray actors behind it, a simulation made-up ones."""

from collections import OrderedDict

from negalign_ray.actors.plan import Plan
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.events import Record, forget
from negalign_ray.loops.candidates import CandidateLists
from negalign_ray.loops.orders import ContextIds, OrderFactory
from negalign_ray.loops.roles import Fleet
from negalign_ray.loops.rollout import Rollout
from negalign_ray.records import Prompt, TokenIds

MAX_CONTEXTS = 4096  # remembered ones; 250 tokens take 9 kB


def remembered_contexts(chat: ChatTokenizer, *, max_contexts: int = MAX_CONTEXTS) -> ContextIds:
    """Tokens to sample from; the last prompts are not tokenised again under the same instruction."""
    contexts: OrderedDict[tuple[int, str | None], TokenIds] = OrderedDict()

    def context_ids(prompt: Prompt, instruction: str | None) -> TokenIds:
        key = (prompt.prompt_id, instruction)
        if key not in contexts:
            contexts[key] = chat.prompt_ids(prompt.messages, instruction)
            if len(contexts) > max_contexts:
                contexts.popitem(last=False)
        contexts.move_to_end(key)
        return contexts[key]

    return context_ids


def make_orders(plan: Plan, *, context_ids: ContextIds) -> OrderFactory:
    return OrderFactory(
        plan.data.train,
        instructions=plan.instructions,
        num_samples=plan.num_samples,
        seed=plan.config.run.seed,
        context_ids=context_ids,
    )


def make_rollout(plan: Plan, *, fleet: Fleet, orders: OrderFactory, record: Record = forget) -> Rollout:
    config, kept = plan.config, plan.candidates
    return Rollout(
        fleet=fleet,
        orders=orders,
        config=config.sampling,
        groups_per_step=config.learners.groups_per_step,
        num_steps=config.learners.steps,
        orders_per_wave=config.samplers.orders_per_call,
        wants_scores=bool(config.scorers.heads),
        wants_references=plan.needs.references,
        references_follow=config.references.follow == "snapshot",
        wants_guide=config.uses_guide,
        samplers_sleep=config.samplers.sleep,
        candidates=CandidateLists(max_lists=kept.max_lists) if kept else None,
        record=record,
    )
