"""The sampler role against bare offline vLLM, and how long it takes to give a sampler new weights.

Both arms are processes of their own with the same threads, batch, prompts and answer lengths (nothing stops an answer
early). The sampler's time is what its caller waits: order in, group out, log-probs, texts and Ray included; bare vLLM's
is `LLM.generate` alone, in eager mode as the sampler's, without seeds or log-probs.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch

from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.processes import open_log, start_actor, thread_environment, wait_until_ready
from negalign_ray.actors.starting import make_sampler
from negalign_ray.bench.measure import BENCH_SETTINGS, interleave, median_ratio, with_settings
from negalign_ray.bench.sizes import Sizes
from negalign_ray.bench.work import next_orders, order_factory
from negalign_ray.config import Config
from negalign_ray.engines.weights import WeightBundle
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.records import Order, TokenIds

log = logging.getLogger(__name__)

GIB = 1 << 30
VLLM_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, slots=True)
class SamplerFigures:
    sampler_vs_bare_vllm: float  # median of the repeats' ratios
    tokens_per_s: float
    bare_vllm_tokens_per_s: float
    seconds: float  # of one call
    num_sequences: int
    new_tokens: int  # per sequence
    threads: int
    dtype: str
    repeats: int
    weight_update_s: float  # publisher's call to the sampler's confirmation, median
    weight_copy_s: float  # part of it that blocks the publisher: copy, checksum and hand-over to the object store
    weight_bytes: int
    weight_repeats: int


@dataclass(frozen=True, slots=True)
class _Timed:
    num_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


def measure_sampler(config: Config, sizes: Sizes, run_dir: Path) -> SamplerFigures:
    """Needs a Ray cluster. Raises ModelError or RoleError when an engine does not start."""
    plan = _plan(config, sizes, run_dir)
    sampler, bare = make_sampler(plan, 0), _make_bare(plan)
    wait_until_ready(
        {"sampler-0": sampler.ready.remote(), "vllm-0": bare.ready.remote()}, deadline_s=config.deadlines.start_s
    )
    factory = order_factory(plan, num_samples=sizes.sampler_answers)
    batches = [next_orders(factory, sizes.sampler_orders) for _ in range(sizes.sampler_repeats + 1)]
    _ours(plan, sampler, batches[0]), _bare(plan, bare, batches[0])  # warm-up
    log.info("sampler against bare vLLM, %d repeats", sizes.sampler_repeats)
    pairs = interleave(
        lambda repeat: _ours(plan, sampler, batches[repeat + 1]),
        lambda repeat: _bare(plan, bare, batches[repeat + 1]),
        repeats=sizes.sampler_repeats,
    )
    ray.kill(bare)
    updates = _update_weights(plan, sampler, repeats=sizes.weight_repeats)
    ray.kill(sampler)
    ours, theirs = [pair[0].tokens_per_s for pair in pairs], [pair[1].tokens_per_s for pair in pairs]
    return SamplerFigures(
        sampler_vs_bare_vllm=median_ratio(ours, theirs),
        tokens_per_s=median(ours),
        bare_vllm_tokens_per_s=median(theirs),
        seconds=median(pair[0].seconds for pair in pairs),
        num_sequences=sizes.sampler_orders * sizes.sampler_answers,
        new_tokens=sizes.sampler_new_tokens,
        threads=plan.config.samplers.threads,
        dtype=plan.sampler_dtype,
        repeats=sizes.sampler_repeats,
        weight_update_s=median(update.seconds for update in updates),
        weight_copy_s=median(update.copy_s for update in updates),
        weight_bytes=updates[0].num_bytes,
        weight_repeats=sizes.weight_repeats,
    )


def _plan(config: Config, sizes: Sizes, run_dir: Path) -> Plan:
    settings = {
        "run": {"dir": run_dir, "name": "bench-sampler"},
        "sampling": {"num_samples": sizes.sampler_answers, "max_new_tokens": sizes.sampler_new_tokens},
        "samplers": {"num": 1, "engine": "vllm", "max_num_seqs": sizes.sampler_orders * sizes.sampler_answers},
    }
    return replace(make_plan(with_settings(config, BENCH_SETTINGS, settings)), stop_ids=())


def _ours(plan: Plan, sampler: Any, orders: Sequence[Order]) -> _Timed:
    started = time.perf_counter()
    head, *groups = sampler.sample.options(num_returns=len(orders) + 1).remote(orders)
    deadline_s = plan.config.deadlines.sample_s
    cards, _, _ = ray.get(head, timeout=deadline_s)
    ray.wait(groups, num_returns=len(groups), timeout=deadline_s)
    seconds = time.perf_counter() - started
    return _Timed(sum(sample.num_tokens for card in cards for sample in card.fresh_samples), seconds)


def _bare(plan: Plan, bare: Any, orders: Sequence[Order]) -> _Timed:
    contexts = [request.context_ids for order in orders for request in order.requests]
    call = bare.generate.remote(contexts, plan.config.sampling.max_new_tokens)
    return ray.get(call, timeout=plan.config.deadlines.sample_s)


def _make_bare(plan: Plan) -> Any:
    environment = thread_environment(str(plan.config.samplers.threads)) | VLLM_ENVIRONMENT
    return start_actor(_BareVllm, {"runtime_env": {"env_vars": environment}}, plan)


@ray.remote(num_cpus=0)
class _BareVllm:
    """What a user writes who wants answers and nothing else."""

    def __init__(self, plan: Plan) -> None:
        open_log(plan.config.run_dir, "vllm-0")
        samplers = plan.config.samplers
        torch.set_num_threads(samplers.threads)
        from vllm import LLM

        self._llm = LLM(
            str(plan.model_path),
            dtype=plan.sampler_dtype,
            max_model_len=plan.max_model_len,
            max_num_seqs=samplers.max_num_seqs,
            kv_cache_memory_bytes=int(samplers.kv_cache_gib * GIB),
            enforce_eager=True,  # as the sampler's engine
            generation_config="vllm",
        )

    def ready(self) -> bool:
        return True

    def generate(self, contexts: Sequence[TokenIds], new_tokens: int) -> _Timed:
        from vllm import SamplingParams, TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=list(context)) for context in contexts]
        params = SamplingParams(temperature=1.0, max_tokens=new_tokens, ignore_eos=True)
        self._llm.reset_prefix_cache()  # in training, new weights empty it before every call
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return _Timed(sum(len(output.outputs[0].token_ids) for output in outputs), seconds)


# -- weights ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Update:
    seconds: float
    copy_s: float
    num_bytes: int


def _update_weights(plan: Plan, sampler: Any, *, repeats: int) -> list[_Update]:
    log.info("weight updates, %d repeats", repeats)
    publisher = start_actor(_Publisher, {}, plan)
    call = publisher.publish.remote(sampler, repeats)
    updates = ray.get(call, timeout=plan.config.deadlines.start_s + (repeats + 1) * plan.config.deadlines.weights_s)
    ray.kill(publisher)
    return updates


@ray.remote(num_cpus=0)
class _Publisher:
    """Holds weights as a learner's rank 0 does, and hands them over as its ConductorSource does."""

    def __init__(self, plan: Plan) -> None:
        open_log(plan.config.run_dir, "publisher-0")
        self._plan = plan
        self._model = load_causal_lm(plan.model_path, getattr(torch, plan.learner_dtype))

    def publish(self, sampler: Any, repeats: int) -> list[_Update]:
        """The first update is a warm-up: the object store touches its memory for the first time."""
        return [self._publish_once(sampler, version) for version in range(1, repeats + 2)][1:]

    def _publish_once(self, sampler: Any, version: int) -> _Update:
        weights = [(name, parameter.detach()) for name, parameter in self._model.named_parameters()]
        started = time.perf_counter()
        bundle = WeightBundle.from_tensors(weights, version=version, dtype=getattr(torch, self._plan.sampler_dtype))
        reference = ray.put(bundle)
        copied = time.perf_counter()
        ray.get(sampler.load_weights.remote(reference), timeout=self._plan.config.deadlines.weights_s)
        return _Update(time.perf_counter() - started, copied - started, bundle.num_bytes)
