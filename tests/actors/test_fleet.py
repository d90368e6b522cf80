"""What the roles answer becomes what the rollout loop reads; no role is started."""

from negalign_ray.actors.fleet import RayFleet, _as_result
from negalign_ray.actors.plan import make_plan
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import StageResult
from negalign_ray.records import GroupCard

CARDS = [GroupCard(order_id, None, 1, (), prompt_id=order_id) for order_id in (4, 5)]
HANDLES = (Handle("ref 4", CARDS[0]), Handle("ref 5", CARDS[1]))


def test_the_head_of_a_sampler_s_answer_has_cards_seconds_and_tokens():
    assert _as_result((CARDS, 0.5, 7), ["ref 4", "ref 5"]) == StageResult(HANDLES, 0.5, 7)


def test_a_reference_adds_what_it_remembered_and_a_guide_its_figures():
    remembered = _as_result((CARDS, 0.5, 7, {"num_prices": 6, "num_remembered": 2}), ["ref 4", "ref 5"])
    assert remembered == StageResult(HANDLES, 0.5, 7, num_prices=6, num_remembered=2)
    guided = _as_result((CARDS, 0.5, 7, {"figures": {"guide/pairs": 2.0}}), ["ref 4", "ref 5"])
    assert guided.figures == {"guide/pairs": 2.0}


def test_a_fleet_counts_its_scorers_and_references_and_nobody_of_a_role_that_is_not_there(toy_config):
    fleet = RayFleet(make_plan(toy_config("scorers.num=2")))
    assert fleet.sizes == {"scorer/num": 2, "reference/num": 1}
    nobody_scores = toy_config("scorers.heads=[]")
    assert RayFleet(make_plan(nobody_scores)).sizes == {"reference/num": 1}
