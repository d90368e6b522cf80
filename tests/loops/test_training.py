"""One learner rank, driven by a hand-made policy: a table of one logit per response, so that every number is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from negalign_ray.config import LATENT_DISTANCE, CLHAConfig, D2OConfig, LDAlignConfig, LearnersConfig
from negalign_ray.errors import NonFiniteError
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.training import TrainingLoop
from negalign_ray.methods import METHODS
from negalign_ray.methods.groups import RewardSource
from negalign_ray.records import Group, Prompt, Response, Role

ON_POLICY = SamplingSchedule(interval=False, online_from_step=0, refresh_every=1, staleness=0)


def make_group(order_id: int, *, num_tokens: int = 4) -> Group:
    negative = Response(Role.NEGATIVE, (1,) * num_tokens, "no", ref_logprobs={"rpos": -3.0, "rneg": -3.0})
    sample = Response(
        Role.SAMPLE, (2, 3), "yes", context_ids=(9, 5), weight_version=0, sampler_logprobs=(-1.5, -1.5),
        ref_logprobs={"rpos": -3.0, "rneg": -3.0},
    )  # fmt: skip
    prompt = Prompt(order_id, "p", (("user", "p"),), (5,), (negative,))
    return Group(order_id, prompt, (negative, sample))


@dataclass(frozen=True)
class Stats:
    grad_norm: float
    lr: float


class TablePolicy:
    """log p(negative) = table[0], log p(sample) = table[1], whatever the prompt."""

    def __init__(self, start: float = -3.0):
        self.table = torch.full((2,), start, requires_grad=True)
        self.boundaries: list[bool] = []

    def logprobs(self, groups: Sequence[Group]) -> torch.Tensor:
        return self.table.repeat(len(groups)) if groups else self.table[:0]

    def no_grad_token_logprobs(self, groups: Sequence[Group]) -> list[torch.Tensor]:
        return [torch.tensor([-1.0, -1.25]) for _ in groups]

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        self.boundaries.append(is_last)
        loss.backward()

    def step(self) -> Stats:
        norm = float(self.table.grad.norm())
        self.last_grad = self.table.grad.clone()
        with torch.no_grad():
            self.table -= self.table.grad
        self.table.grad = None
        return Stats(norm, 1.0)

    def gather_weights(self):
        return [("table", self.table.detach().clone())]


@dataclass
class ListSource:
    groups: list[Group]
    stop_at: int | None = None
    published: list[int] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)

    def pull(self, step: int) -> Batch | None:
        if step == self.stop_at:
            return None
        return Batch(step, tuple(Handle(group, group.card()) for group in self.groups))

    def fetch(self, handles):
        return [handle.ref for handle in handles]

    def publish(self, version, tensors):
        self.published.append(version)

    def report(self, report):
        self.reports.append(report)


def rewarded(group: Group, head: str, first: float, second: float, *, role: Role = Role.NEGATIVE) -> Group:
    """Both answers with a reward; the first one with another role, if need be."""
    answer, sample = group.responses
    return replace(
        group,
        responses=(replace(answer, role=role, rewards={head: first}), replace(sample, rewards={head: second})),
    )


@dataclass(frozen=True)
class Step:
    """Four groups whose first answers have 2, 3, 4 and 5 tokens, and the gradient of their loss by hand."""

    method_config: object
    groups: list[Group]
    gradient: list[float]
    reward: RewardSource | None = None


def step_of(name: str) -> Step:
    groups = [make_group(i, num_tokens=2 + i) for i in range(4)]
    if name == "d2o":
        return Step(D2OConfig(alpha=1.0, beta=1.0), groups, [0.5, -0.5])
    if name == "clha":  # gaps 4, 1, 5, 1: groups 0 and 2 exceed the margin, inside the hinge, so SUM M = 2
        groups = [rewarded(group, "reward", 0.0, gap) for group, gap in zip(groups, (4.0, 1.0, 5.0, 1.0), strict=True)]
        gradient = [(1 / 2 + 1 / 4) / 2, -(1 / 2 + 1 / 2) / 2]  # of p = lp / |y|, by answer
        return Step(CLHAConfig(sft_weight=0.0), groups, gradient, RewardSource("reward"))
    # distances 1, 1, 1, 5: over their mean .5, .5, .5 and 2.5, clipped to 2; the mean weight is .875
    groups = [
        rewarded(group, LATENT_DISTANCE, math.nan, distance, role=Role.POSITIVE)
        for group, distance in zip(groups, (1.0, 1.0, 1.0, 5.0), strict=True)
    ]
    gradient = [-0.875 / 2, 0.875 / 2]
    return Step(LDAlignConfig(beta=1.0, max_weight=2.0), groups, gradient, RewardSource(LATENT_DISTANCE))


def make_loop(
    policy, source, *, rank=0, world_size=1, schedule=ON_POLICY, saved=None, given=None, **learners
) -> TrainingLoop:
    given = given or step_of("d2o")
    return TrainingLoop(
        learner=policy,
        source=source,
        method=METHODS[given.method_config.name],
        method_config=given.method_config,
        reward=given.reward,
        config=LearnersConfig(**{"steps": 1, "groups_per_step": 4, **learners}),
        schedule=schedule,
        rank=rank,
        world_size=world_size,
        save_samples=lambda step, groups: None if saved is None else saved.append((step, [g.order_id for g in groups])),
    )


def test_the_first_step_starts_at_log_two_and_pushes_negatives_down_and_samples_up():
    policy, source = TablePolicy(), ListSource([make_group(i) for i in range(4)])
    make_loop(policy, source).run()
    report = source.reports[0]
    assert report.sums["learner/loss"] / report.counts["learner/loss"] == pytest.approx(math.log(2))
    assert policy.last_grad.tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("method", ["d2o", "clha", "ld_align"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 10, 1000])
def test_micro_batches_do_not_change_the_gradient(micro_batch_tokens, method):
    policy, given = TablePolicy(), step_of(method)
    make_loop(policy, ListSource(given.groups), given=given, micro_batch_tokens=micro_batch_tokens).run()
    assert policy.last_grad.tolist() == pytest.approx(given.gradient)
    assert policy.boundaries[-1]
    assert sum(policy.boundaries) == 1, "one optimizer boundary per step"


@pytest.mark.parametrize("method", ["d2o", "clha", "ld_align"])
@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_the_ranks_shares_add_up_to_the_single_rank_gradient_even_when_a_share_is_empty(world_size, method):
    given = step_of(method)
    total, seen, boundaries = torch.zeros(2), [], []
    for rank in range(world_size):
        policy, saved = TablePolicy(), []
        share = {"rank": rank, "world_size": world_size, "micro_batch_tokens": 8}
        make_loop(policy, ListSource(given.groups), given=given, saved=saved, **share).run()
        total += policy.last_grad
        seen += saved[0][1]
        boundaries.append(len(policy.boundaries))
    assert total.tolist() == pytest.approx(given.gradient)
    assert sorted(seen) == [0, 1, 2, 3], "every group is trained on by exactly one rank"
    assert len(set(boundaries)) == 1, "ZeRO needs every rank in every backward"


def test_weights_are_published_after_every_on_policy_step():
    source = ListSource([make_group(0)])
    make_loop(TablePolicy(), source, steps=3).run()
    assert source.published == [1, 2, 3]


def test_before_t0_only_the_final_weights_are_published():
    source = ListSource([make_group(0)])
    schedule = SamplingSchedule(interval=False, online_from_step=9, refresh_every=1, staleness=0)
    make_loop(TablePolicy(), source, steps=3, schedule=schedule).run()
    assert source.published == [3]


def test_a_stop_request_ends_the_loop_after_the_step_under_way():
    source = ListSource([make_group(0)], stop_at=2)
    assert make_loop(TablePolicy(), source, steps=5).run() == 2
    assert [report.step for report in source.reports] == [0, 1]


def test_a_non_finite_loss_names_the_groups_and_never_reaches_the_optimizer():
    policy = TablePolicy(start=float("nan"))
    source, saved = ListSource([make_group(11), make_group(12)]), []
    with pytest.raises(NonFiniteError, match=r"learner\[0\]: loss is nan for the groups \[11, 12\]"):
        replace(make_loop(policy, source), save_samples=lambda step, groups: saved.append((step, len(groups)))).run()
    assert source.reports == []
    assert saved == [(0, 2)], "the message says where they are"


def test_the_log_prob_of_followed_answers_is_measured_before_the_update_of_every_nth_step():
    source = ListSource([make_group(0)])
    loop = make_loop(TablePolicy(), source, steps=5, mismatch_every=0)
    replace(loop, followed={"benign": (make_group(7), make_group(8))}, follow_every=2).run()
    key = "learner/benign_logprob_nats"
    assert [report.step for report in source.reports if key in report.sums] == [0, 2, 4]
    # two groups; the policy says -1 and -1.25 of the two tokens of an answer
    assert (source.reports[0].sums[key], source.reports[0].counts[key]) == (-4.5, 4)


def test_a_checkpoint_is_written_between_publishing_and_reporting_a_step():
    events: list[str] = []

    class Watched(ListSource):
        def publish(self, version, tensors):
            events.append(f"publish {version}")

        def report(self, report):
            events.append(f"report {report.step + 1}")
            super().report(report)

    def keep(version: int) -> bool:
        events.append(f"keep {version}")
        return version == 2

    source = Watched([make_group(0)])
    replace(make_loop(TablePolicy(), source, steps=2), keep=keep).run()
    assert events == [f"{what} {step}" for step in (1, 2) for what in ("publish", "keep", "report")]
    assert ["learner/checkpoint_s" in report.values for report in source.reports] == [False, True]


def test_a_resumed_loop_begins_with_the_step_after_those_that_are_done():
    source = ListSource([make_group(0)])
    assert make_loop(TablePolicy(), source, steps=5).run(first_step=3) == 5
    assert [report.step for report in source.reports] == [3, 4]


def test_the_mismatch_is_the_mean_absolute_difference_on_the_tokens_as_they_were_sampled():
    source = ListSource([make_group(0)])
    make_loop(TablePolicy(), source, mismatch_every=1).run()
    report = source.reports[0]
    # |-1 + 1.5| + |-1.25 + 1.5| = 0.75 nats over 2 tokens
    assert (report.sums["learner/mismatch_nats"], report.counts["learner/mismatch_nats"]) == (0.75, 2)
