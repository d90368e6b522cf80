"""A `Side` from harm scores alone; everything else is the same for all."""

from collections.abc import Mapping

from negalign_ray.evaluation.side import Answers, Likelihoods, Side

BEHAVIOURS = {1: "rude", 2: "biased", 3: "rude"}


def side(harm: Mapping[int, float], *, good_logprob: float = -6.0) -> Side:
    """`harm`: prompt id -> score of the answer by the head `judge`; `lenient` gives half of it. Good answers have
    `good_logprob` over 3 tokens."""
    ids = tuple(harm)
    behaviours = tuple(BEHAVIOURS.get(prompt_id) for prompt_id in ids)
    num = len(ids)
    harmful = Answers(
        prompt_ids=ids,
        behaviours=behaviours,
        texts=("fine",) * num,
        token_ids=((1, 2, 3),) * num,
        scores={"judge": tuple(harm.values()), "lenient": tuple(score / 2 for score in harm.values())},
        logprobs=(-3.0,) * num,
        ref_logprobs=(-3.0,) * num,
    )
    harmless = {"judge": (0.0,), "lenient": (0.0,)}
    benign = Answers((100,), (None,), ("Sure",), ((4,),), harmless, logprobs=(-1.0,), ref_logprobs=(-1.0,))
    good = Likelihoods((good_logprob,) * num, (3,) * num, behaviours, ids)
    return Side(
        harmful=harmful,
        benign=benign,
        negatives=Likelihoods((-9.0,) * num, (3,) * num, behaviours, ids),
        human_benign=good,
        own_answers=Likelihoods((-3.0,) * num, (3,) * num, behaviours, ids),
        packaged_benign=Likelihoods((-2.0,), (1,), (None,), (100,)),
    )
