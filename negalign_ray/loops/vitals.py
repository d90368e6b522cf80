"""Signs of life that cost next to nothing to read: from the step's own samples, and from a few fixed human answers.

The guards (guards.py) watch them. Sums and counts are added up over the ranks, so no split of a batch changes them.
"""

from collections.abc import Sequence

from torch import Tensor

from negalign_ray.data.collate import share_of
from negalign_ray.data.ngrams import repetition_frac
from negalign_ray.loops.roles import Learner
from negalign_ray.records import Group, Role


def sample_vitals(
    sums: dict[str, float], counts: dict[str, int], groups: Sequence[Group], logprobs_N: Tensor, *, references: bool
) -> None:
    """Add the fresh own samples of a micro-batch to what a rank reports (default dictionaries).

    `logprobs_N` are the policy's, of all responses of `groups` in order. Samples y ~ pi give unbiased estimates of
    H(pi), -log pi(y), and of KL(pi || ref), log pi(y) - log ref(y); both are reported per token.
    """
    logprobs = iter(logprobs_N.detach().double().tolist())
    for response, logprob in ((response, next(logprobs)) for group in groups for response in group.responses):
        if response.role is not Role.SAMPLE or response.carried:
            continue
        sums["sampler/repetition_frac"] += repetition_frac(response.token_ids)
        counts["sampler/repetition_frac"] += 1
        if response.sampler_logprobs:
            sums["sampler/entropy_nats"] -= sum(response.sampler_logprobs)
            counts["sampler/entropy_nats"] += len(response.sampler_logprobs)
        if references:
            sums["learner/kl_nats"] += logprob - response.ref_logprobs["rpos"]
            counts["learner/kl_nats"] += len(response.token_ids)


def logprob_of(
    learner: Learner, groups: Sequence[Group], *, rank: int, world_size: int, micro_batch_tokens: int
) -> tuple[float, int]:
    """This rank's share of the log-prob of all responses of `groups`: sum in nats, and tokens. Collective: all ranks
    call it, each the same number of times forward."""
    total, num_tokens = 0.0, 0
    sizes = [group.num_tokens for group in groups]
    for indices in share_of(sizes, rank=rank, world_size=world_size, micro_batch_tokens=micro_batch_tokens):
        for logprobs_T in learner.no_grad_token_logprobs([groups[index] for index in indices]):
            total += float(logprobs_T.double().sum())
            num_tokens += len(logprobs_T)
    return total, num_tokens
