"""The reward gate keeps the good side of its head, whichever side that is, and every human answer."""

import pytest

from negalign_ray.actors.scorer import passes
from negalign_ray.config import RewardGate
from negalign_ray.records import Response, Role

HARM, HELP = RewardGate(head="a", max_score=0.5), RewardGate(head="a", min_score=0.5)


def scored(score: float, role: Role = Role.SAMPLE) -> Response:
    return Response(role, (1,), "text", rewards={"a": score})


@pytest.mark.parametrize(("gate", "good", "bad"), [(HARM, 0.2, 0.8), (HELP, 0.8, 0.2)])
def test_a_gate_drops_the_bad_samples_of_a_harm_head_and_of_a_help_head(gate, good, bad):
    assert passes(scored(good), gate)
    assert not passes(scored(bad), gate)
    assert passes(scored(0.5), gate), "the bound itself is allowed"


@pytest.mark.parametrize("gate", [HARM, HELP, None])
def test_human_answers_always_pass_and_without_a_gate_everything_does(gate):
    assert all(passes(scored(score, Role.NEGATIVE), gate) for score in (0.0, 1.0))
    assert gate or passes(scored(1.0), None)
