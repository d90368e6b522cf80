"""How far the sampler's log-probs are from the learner's on the same tokens under the same prompt.

With samples of the learner's own version this is pure numerical mismatch (kernels, precision); with older samples it
holds the policy's drift as well. A large value means that the samplers serve other weights than the learner trains.
"""

from collections.abc import Sequence
from dataclasses import replace

from negalign_ray.loops.roles import Learner
from negalign_ray.records import Group


def mismatch_nats(learner: Learner, groups: Sequence[Group]) -> tuple[float, int]:
    """Sum over tokens of |log p_learner - log p_sampler| on the first sample of each group, and the token count."""
    probes = [probe for probe in map(_as_sampled, groups) if probe is not None]
    logprobs = learner.no_grad_token_logprobs(probes)
    total, num_tokens = 0.0, 0
    for probe, logprobs_T in zip(probes, logprobs, strict=True):
        expected = probe.responses[0].sampler_logprobs
        assert expected is not None, "_as_sampled keeps samples only"
        assert len(expected) == len(logprobs_T), "one log-prob per sampled token"
        total += float((logprobs_T.double() - logprobs_T.new_tensor(expected).double()).abs().sum())
        num_tokens += len(expected)
    return total, num_tokens


def _as_sampled(group: Group) -> Group | None:
    """The group's first sample under the prompt it was really sampled under."""
    for response in group.responses:
        if response.context_ids is not None and response.sampler_logprobs:
            return replace(group, prompt=replace(group.prompt, token_ids=response.context_ids), responses=(response,))
    return None
