"""How many groups per second the conductor handles in Ray, and whether its memory stays bounded.

    python scripts/bench_conductor_in_ray.py                               # about a minute on two cores
    python scripts/bench_conductor_in_ray.py --samplers 8 --groups 2048
    python scripts/bench_conductor_in_ray.py --profile conductor.prof      # where its event loop spends its time

The real `Conductor` with Ray's calls and object references, its reports, metrics and events. Samplers, a scorer and a
reference are actors that answer at once; the learner pulls, fetches, reports and publishes. All that the conductor sees
of a group is its card, so a group here is a card and as many bytes as a real one takes: to make real ones, and to read
them, is the work of machines that this one has to stand in for. All share its cores still, so groups per second of the
clock are a bound from below.
"""

import argparse
import cProfile
import json
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import negalign_ray.actors  # noqa: F401  # before Ray: token authentication

import psutil  # isort: skip
import ray  # isort: skip

from negalign_ray.actors import fleet
from negalign_ray.actors.conductor import Conductor
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.presence import await_end
from negalign_ray.actors.processes import conductor_name
from negalign_ray.actors.sampler import answer_orders
from negalign_ray.config import Config
from negalign_ray.loops.roles import StepReport
from negalign_ray.records import (
    Generation,
    GroupCard,
    Order,
    ResponseCard,
    Role,
    SampleRequest,
    SamplingSpec,
    WeightReceipt,
)
from negalign_ray.settings import load_config

ANSWER_TOKENS = 32
SPEC = SamplingSpec(max_new_tokens=ANSWER_TOKENS)
ROLE = {"num_cpus": 0, "max_concurrency": 1}
InstantGroup = tuple[GroupCard, bytes]


class InstantEngine:
    """Writes answers that differ, and nothing else."""

    def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        logprobs = tuple(-1.0 - 0.001 * position for position in range(spec.max_new_tokens))
        answers = (tuple(range(number, number + spec.max_new_tokens)) for number, _ in enumerate(requests))
        return [Generation(token_ids, logprobs, "stop", "an answer of some words") for token_ids in answers]


def rest_of_group(order: Order) -> bytes:
    """As many bytes as a real group of this order takes beside its card."""
    engine: Any = InstantEngine()
    [group], _ = answer_orders(engine, [order], [None], spec=SPEC, version=0, max_candidates=0)
    return bytes(max(0, len(pickle.dumps(group, protocol=5)) - len(pickle.dumps(group.card(), protocol=5))))


def card_of(order: Order, *, version: int) -> GroupCard:
    openings = ((number, number + 1, number + 2) for number, _ in enumerate(order.requests))
    samples = (ResponseCard(Role.SAMPLE, ANSWER_TOKENS, stopped=True, opening=opening) for opening in openings)
    humans = (ResponseCard.of(response) for response in order.prompt.responses)
    return GroupCard(order.order_id, version, 100, (*humans, *samples), order.prompt.prompt_id)


def with_rewards(card: GroupCard) -> GroupCard:
    """All answers are alike to the scorer."""
    return replace(card, responses=tuple(replace(each, rewards={"toxicity": 0.5}) for each in card.responses))


@ray.remote
class InstantSampler:
    def __init__(self, rank: int) -> None:
        self._rank, self._version = rank, 0
        self._rest: bytes | None = None

    def ready(self) -> int:
        return 0

    def sample(self, orders: Sequence[Order], *earlier: None) -> tuple:
        self._rest = self._rest or rest_of_group(orders[0])
        cards = [card_of(order, version=self._version) for order in orders]
        num_tokens = sum(len(order.requests) for order in orders) * ANSWER_TOKENS
        return (cards, 0.0, num_tokens), *((card, self._rest) for card in cards)

    def load_weights(self, version: int) -> WeightReceipt:
        self._version = version
        return WeightReceipt(self._rank, version, checksum=0, seconds=0.0, num_bytes=0)


@ray.remote
class InstantRole:
    """A scorer and a reference."""

    def ready(self) -> bool:
        return True

    def score(self, *groups: InstantGroup) -> tuple:
        cards = [with_rewards(card) for card, _ in groups]
        return (cards, 0.0, 0), *((card, rest) for card, (_, rest) in zip(cards, groups, strict=True))

    def price(self, *groups: InstantGroup, version: int = 0) -> tuple:
        return ([card for card, _ in groups], 0.0, 0), *groups


def make_instant_sampler(plan: Plan, rank: int, **options: Any) -> Any:
    return InstantSampler.options(**ROLE, namespace=options["namespace"]).remote(rank)


def make_instant_role(*_: Any, **options: Any) -> Any:
    return InstantRole.options(**ROLE, namespace=options["namespace"]).remote()


class ConductorOfInstantRoles(Conductor.__ray_metadata__.modified_class):  # type: ignore[misc,name-defined]
    """The conductor as it is, with other actors behind it."""

    def __init__(self, plan: Plan) -> None:
        fleet.make_sampler, fleet.make_scorer, fleet.make_reference = (
            make_instant_sampler,
            make_instant_role,
            make_instant_role,
        )
        super().__init__(plan)
        self._profile = cProfile.Profile()

    async def num_references(self) -> int:
        """Objects that this process holds on to, or another one on its behalf."""
        return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())

    async def num_bytes(self) -> int:
        """Of small objects, which Ray keeps in the process that owns them."""
        return ray._private.worker.global_worker.core_worker.get_local_memory_store_bytes_used()

    async def begin_profile(self) -> None:
        self._profile.enable()

    async def end_profile(self, path: str) -> None:
        self._profile.disable()
        self._profile.dump_stats(path)


@dataclass(frozen=True)
class Reading:
    """Of the conductor's process."""

    clock_s: float
    cpu_s: float  # of all its threads
    thread_s: dict[int, float]
    resident_bytes: int
    num_references: int
    num_bytes: int

    @classmethod
    def of(cls, process: psutil.Process, conductor: Any) -> "Reading":
        num_references, num_bytes = ray.get([conductor.num_references.remote(), conductor.num_bytes.remote()])
        with process.oneshot():
            used = process.cpu_times()
            threads = {each.id: each.user_time + each.system_time for each in process.threads()}
            cpu_s, resident_bytes = used.user + used.system, process.memory_info().rss
            return cls(time.monotonic(), cpu_s, threads, resident_bytes, num_references, num_bytes)

    def busiest_thread_s(self, before: "Reading") -> float:
        return max(used - before.thread_s.get(thread, 0.0) for thread, used in self.thread_s.items())


def make_config(options: argparse.Namespace, folder: str) -> Config:
    num_under_way = (options.staleness + 1) * options.groups
    return load_config(
        preset="quickstart",
        overrides=[
            *(f"run.dir={folder}", "run.name=bench", "evaluation.enabled=false", "checkpoints.every=0"),
            *(f"samplers.num={options.samplers}", f"scorers.num={options.scorers}"),
            *(f"references.num={options.references}", f"learners.steps={options.steps}", "guards.enabled=false"),
            *(f"{section}.cpus=0.001" for section in ("samplers", "scorers", "references", "learners")),
            *(f"sampling.num_samples={options.answers}", f"sampling.staleness={options.staleness}"),
            *(f"learners.groups_per_step={options.groups}", f"sampling.buffer_groups={num_under_way}"),
        ],
    )


def report_of(step: int, num_groups: int, step_s: float) -> StepReport:
    sums = {"learner/loss": 0.69 * num_groups, "learner/margin_nats": 0.0, "learner/tokens": 100.0 * num_groups}
    counts = dict.fromkeys(sums, num_groups)
    seconds = {"learner/pull_wait_s": step_s, "learner/compute_s": 1e-3, "learner/gather_s": 0.0}
    return StepReport(
        step, 0, sums, counts, {"learner/grad_norm": 1.0, "learner/lr": 1e-6, **seconds, "learner/step_s": step_s}
    )


def learn(conductor: Any, *, num_steps: int, process: psutil.Process, profile: str | None) -> list[Reading]:
    """What the learner does, and a reading at the end of every step."""
    readings = []
    for step in range(num_steps):
        if step == 1 and profile:
            ray.get(conductor.begin_profile.remote())
        started = time.monotonic()
        batch = ray.get(conductor.pull.remote(step, 0))
        groups = ray.get([handle.ref for handle in batch.handles])
        publishing = conductor.publish.remote(step + 1, [ray.put(step + 1)])
        ray.get(conductor.report.remote(report_of(step, len(groups), time.monotonic() - started)))
        ray.get(publishing)
        readings.append(Reading.of(process, conductor))
    if profile:
        ray.get(conductor.end_profile.remote(profile))
    return readings


def measure(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    plan = make_plan(make_config(options, folder))
    name = plan.config.run.name
    conductor = (
        ray.remote(num_cpus=0, max_concurrency=256)(ConductorOfInstantRoles)
        .options(name=conductor_name(name), namespace="bench")
        .remote(plan)
    )
    ray.get(conductor.ready.remote())
    pid = json.loads((plan.config.run_dir / "logs" / "conductor-0.json").read_text())["pid"]
    ray.get(conductor.start.remote())
    profile = str(options.profile.resolve()) if options.profile else None
    readings = learn(conductor, num_steps=options.steps, process=psutil.Process(pid), profile=profile)
    orders = ray.get(conductor.close.remote())
    ray.kill(conductor)
    await_end(name)
    first, middle, last = readings[0], readings[len(readings) // 2], readings[-1]  # the first step is warm-up
    num_groups = (options.steps - 1) * options.groups
    return {
        "groups_per_s": round(num_groups / (last.clock_s - first.clock_s)),
        "groups_per_s_of_the_busiest_thread": round(num_groups / last.busiest_thread_s(first)),
        "groups_per_cpu_s": round(num_groups / (last.cpu_s - first.cpu_s)),
        "samplers": options.samplers,
        "groups_per_step": options.groups,
        "answers": options.answers,
        "steps": options.steps,
        "resident_mib": [round(each.resident_bytes / 2**20, 1) for each in (first, middle, last)],
        "objects_referred_to": [each.num_references for each in (first, middle, last)],
        "objects_mib": [round(each.num_bytes / 2**20, 1) for each in (first, middle, last)],
        "orders": orders,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", type=int, default=4)
    parser.add_argument("--scorers", type=int, default=1)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--groups", type=int, default=512, help="prompts per optimizer step")
    parser.add_argument("--answers", type=int, default=4, help="per prompt")
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="the first one is warm-up")
    parser.add_argument("--profile", type=Path, help="write cProfile's figures of the event loop there")
    options = parser.parse_args()
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, folder), indent=2))
    ray.shutdown()


if __name__ == "__main__":
    main()
