"""Every metric of a run: its key, unit, meaning and what a bad value hints at; and the files they are written to.

Keys are `role/name_unit`; nats are natural-log units. To add a metric, add one line to METRICS and run `make docs`
(`monitoring/` writes `docs/metrics.md` and the dashboard from it). No torch here.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from negalign_ray.errors import DataError, NegalignError

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

log = logging.getLogger(__name__)
Row = dict[str, float | int | None]
FILE_NAME = "metrics.jsonl"
NONFINITE = "conductor/nonfinite_values"
TOTAL = "total"  # unit of what is counted since the start of the run


class UnknownMetricError(NegalignError):
    """A key is not in the catalogue: a mistake in the code that wrote it, so it is refused at once."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the catalogue. `bad` says what a bad value hints at, and what to try."""

    unit: str
    meaning: str
    bad: str


METRICS: dict[str, Metric] = {
    # learner: one value per optimizer step, over all ranks
    "learner/loss": Metric("nats", "Mean loss per group.", "D2O starts at ln 2 = 0.693; far above: wrong references."),
    "learner/anchor_nats": Metric(
        "nats",
        "Anchor term: weight times the mean summed log-ratio of the own samples to rneg.",
        "Falling: the model unlearns its own answers (collapse); lower learners.lr or raise sampling.num_samples.",
    ),
    "learner/negative_nats": Metric(
        "nats",
        "Negative term: weight times the summed log-ratio of the human negatives to rpos.",
        "Not falling: nothing is learned; raise learners.lr. Falling by tens of nats within a few steps: lower it.",
    ),
    "learner/margin_nats": Metric(
        "nats",
        "D2O: anchor term minus negative term, the logit of the loss. Pairwise methods: what the winner is ahead of "
        "the loser, in the units of their loss (IPO: nats per token).",
        "Falling: the loss pushes the wrong way.",
    ),
    "learner/positive_nats": Metric(
        "nats",
        "DPO, IPO, SLiC, SPIN: beta times the mean summed log-ratio of the winners to rpos.",
        "Falling with the negatives.",
    ),
    "learner/negative_logratio_nats": Metric(
        "nats",
        "Mean summed log-ratio (policy to rpos) of the human negatives, without the method's weight.",
        "Far below -50: the model forgets the style of its data, not only the harm; stop earlier.",
    ),
    "learner/positive_logratio_nats": Metric(
        "nats",
        "Mean summed log-ratio (policy to rpos) of the human positives, without the method's weight.",
        "Falling: good answers lose likelihood too; lower learners.lr.",
    ),
    "learner/sample_logratio_nats": Metric(
        "nats",
        "Mean summed log-ratio of the self-generated samples (policy to rneg; DPO and SPIN: to rpos), without the "
        "method's weight.",
        "Below about -5 and falling: likelihood is displaced to neither; lower learners.lr.",
    ),
    "learner/kl_nats": Metric(
        "nats/token",
        "Log-ratio (policy to rpos) of the step's new own samples per token: an estimate of the KL divergence of the "
        "policy from the reference where they are the policy's own, of minus the KL divergence of the reference from "
        "the policy where they are the initial model's.",
        "Beyond 0.5 either way: the policy is another model; below -0.2: it unlearns its own answers (see guards.md).",
    ),
    "learner/benign_logprob_nats": Metric(
        "nats/token",
        "Log-prob per token of a fixed few good answers to benign prompts, before the step's update; measured every "
        "follow.every steps.",
        "Falls by 0.5: perplexity is up by two thirds; stop earlier, lower learners.lr.",
    ),
    "learner/heldout_negative_logprob_nats": Metric(
        "nats/token",
        "The same of a fixed few held-out negatives. Measured alike for every method.",
        "Not falling: nothing is learned. Falls as the next one does: the style of both is being unlearned.",
    ),
    "learner/heldout_positive_logprob_nats": Metric(
        "nats/token",
        "The same of a fixed few held-out good answers, where the data has any.",
        "Falls with the one before.",
    ),
    "learner/rank_nats": Metric(
        "nats/token",
        "NEAT, RRHF, CLHA, PRO: ranking term.",
        "Not falling: nothing is learned; raise learners.lr.",
    ),
    "learner/best_token_nll_nats": Metric(
        "nats/token",
        "NEAT, RRHF, CLHA, PRO: negative log-prob of the best candidate per token.",
        "Rising: diverging. Near 0: the model repeats itself, and its own answers are the best ones.",
    ),
    "learner/best_perplexity": Metric(
        ">= 1",
        "Its exponential, of the mean over the step's groups.",
        "As above; near 1 instead of near 0.",
    ),
    "learner/ranked_pairs_frac": Metric(
        "0..1",
        "NEAT, RRHF, CLHA, PRO: share of candidate pairs that the policy ranks as their rewards do.",
        "Stays near 0.5: the ranking is not learned.",
    ),
    "learner/eligible_pairs_frac": Metric(
        "0..1",
        "CLHA: share of candidate pairs whose rewards differ by more than method.margin.",
        "0: the margin does not fit the scale of the head, and CLHA is SFT alone.",
    ),
    "learner/active_pairs_frac": Metric(
        "0..1", "CLHA: share of those pairs inside the hinge.", "0: every pair has its margin; nothing is ranked."
    ),
    "learner/sft_nats": Metric(
        "nats", "CLHA, PRO: weighted likelihood term of the best candidate.", "Rising: diverging."
    ),
    "learner/sft_frac": Metric(
        "0..1",
        "CLHA: share of groups whose best reward is above method.sft_min_reward.",
        "0: no answer is imitated; the threshold does not fit the scale of the head.",
    ),
    "learner/active_negative_pairs_frac": Metric(
        "0..1",
        "NEAT, RRHF: share of violated pairs among those whose worse side is a human or negative-prompted answer.",
        "Near 0: bad answers are unlikely already and teach nothing, so the method is SFT on the best candidate.",
    ),
    "learner/negative_prompt_agreement_frac": Metric(
        "0..1",
        "NEAT: how often a fresh answer to a negative prompt scores below a fresh one to a positive prompt.",
        "Near 0.5: the model ignores the instructions, or the head cannot tell; use neat_pp, or another head.",
    ),
    "learner/pair_accuracy_frac": Metric(
        "0..1",
        "Pairwise methods: share of pairs whose winner gained more than its loser (IPO, SimPO: per token).",
        "Stays near 0.5: no learning.",
    ),
    "learner/positive_nll_nats": Metric("nats", "SFT: mean negative log-prob of a good answer.", "Rising: diverging."),
    "learner/positive_token_nll_nats": Metric(
        "nats/token", "SFT, SimPO: mean negative log-prob of a good answer per token.", "Rising: diverging."
    ),
    "learner/negative_nll_nats": Metric(
        "nats",
        "GA, unlikelihood: mean negative log-prob of a bad answer.",
        "Above 10 nats a token: the model is being destroyed; stop earlier, or lower learners.lr.",
    ),
    "learner/negative_token_nll_nats": Metric(
        "nats/token", "GA, unlikelihood, SimPO: the same per token.", "Above 10: see learner/negative_nll_nats."
    ),
    "learner/weight_frac": Metric(
        "0..1", "Mean gradient weight of the groups, 0.5 at the start.", "Near 0: groups are solved, steps are idle."
    ),
    "learner/distance": Metric(
        "distance",
        "LD-Align: mean latent distance of the step's own answers from the human ones.",
        "0: the model answers as the humans did, or the guide tells nothing apart.",
    ),
    "learner/distance_weight": Metric(
        "weight",
        "LD-Align: mean weight of the step's pairs, 1 unless clipped.",
        "Far below 1: a few pairs far away hold the mean up; raise method.max_weight.",
    ),
    "learner/own_{name}": Metric(
        "of the method", "A metric of a method of your own (method.name=custom), mean over groups.", "See the method."
    ),
    "learner/grad_norm": Metric(
        "norm", "Gradient norm before clipping.", "Always above learners.max_grad_norm: every step is clipped."
    ),
    "learner/lr": Metric("per step", "Learning rate of this step.", "0 throughout: warm-up never ends."),
    "learner/tokens": Metric("tokens", "Tokens computed in this step, prompts included.", "0: the step got no groups."),
    "learner/tokens_per_s": Metric(
        "tokens/s", "Tokens per second of computing (waiting left out).", "Low: raise learners.micro_batch_tokens."
    ),
    "learner/step_s": Metric("s", "Wall time of the step, waiting included.", "See which part below is the largest."),
    "learner/pull_wait_s": Metric(
        "s", "Time the learner waited for its groups.", "Large: sampling is the bottleneck; add samplers or staleness."
    ),
    "learner/compute_s": Metric("s", "Forward, backward and optimizer.", "Large: add learners or threads."),
    "learner/gather_s": Metric(
        "s", "Time that gathering and copying the weights held the learner.", "Above 1 s: the copy blocks training."
    ),
    "learner/checkpoint_s": Metric(
        "s", "Time that writing a checkpoint held the learner.", "Large beside the steps: raise checkpoints.every."
    ),
    "learner/mismatch_nats": Metric(
        "nats/token",
        "Mean absolute difference of per-token log-probs, sampler against learner, on the same tokens and weights.",
        "Above about 0.05 in float32 or 0.1 in bfloat16: the sampler runs other weights or another template.",
    ),
    "learner/weight_change_norm": Metric(
        "norm",
        "2-norm of all trained weights minus what they were at the start (with LoRA: of the adapters).",
        "Growing faster than the steps: the learning rate is too high. Flat: nothing is learned.",
    ),
    "learner/version": Metric("count", "Weight version after this step.", "Not rising: the step was not applied."),
    # behaviour: means over the step's groups of that kind of harm, before the step's update
    "behaviour/{behaviour}/num_groups": Metric(
        "groups", "Groups of this behaviour in the step.", "0 for many steps: it has too few rows to be learned."
    ),
    "behaviour/{behaviour}/negative_nats": Metric(
        "nats",
        "Mean summed log-ratio (policy to rpos) of the human negatives; log-prob for a method without references.",
        "Falls for one behaviour only: the others are crowded out; balance the rows.",
    ),
    "behaviour/{behaviour}/positive_nats": Metric(
        "nats", "The same of the human positives.", "Falling with the negatives: style is unlearned, not harm."
    ),
    "behaviour/{behaviour}/sample_nats": Metric(
        "nats", "The same of the own samples.", "Falling: the model unlearns its own answers of this kind."
    ),
    "behaviour/{behaviour}/margin_nats": Metric(
        "nats",
        "Mean of the good answers minus mean of the bad ones (see docs/dynamics.md for which are which).",
        "Near 0 while others rise: this behaviour is learned last; see `negalign-ray diagnose`.",
    ),
    "behaviour/{behaviour}/margin_per_token_nats": Metric(
        "nats/token", "The same per token of each answer.", "Far from the order of margin_nats: length decides."
    ),
    "behaviour/{behaviour}/accuracy_frac": Metric(
        "0..1",
        "Share of pairs whose good answer is above the bad one; 0 before the first update, where all are equal.",
        "Stays near 0.5: this behaviour is not learned.",
    ),
    # sampler: sums and means over all samplers, per step
    "sampler/tokens_per_s": Metric(
        "tokens/s", "New tokens per busy second, all samplers.", "Low: few requests at once; see samplers.max_num_seqs."
    ),
    "sampler/num": Metric(
        "count", "Samplers that take orders.", "Below samplers.num: see events.jsonl, why one is gone."
    ),
    "sampler/busy_s": Metric("s", "Seconds spent generating, summed over samplers.", "Near 0: samplers sit idle."),
    "sampler/length_tokens": Metric(
        "tokens", "Mean length of an answer.", "Drifting up or down by a third: length is being learned, not harm."
    ),
    "sampler/entropy_nats": Metric(
        "nats/token",
        "Mean negative log-prob of the tokens of the step's new own samples, as they were sampled: an estimate of the "
        "policy's entropy where sampling.temperature is 1.",
        "Falls below half of the start: the policy is certain of its every word (collapse).",
    ),
    "sampler/repetition_frac": Metric(
        "0..1",
        "Share of an own sample's 4-grams that repeat an earlier one of the same answer; mean over the samples.",
        "Above the start by 0.2: answers run in circles (collapse).",
    ),
    "sampler/distinct_openings_frac": Metric(
        "0..1",
        "Different first three tokens over the step's new own samples; falls with the number of samples, too.",
        "Falls below half of the start: every prompt gets the same opening (collapse).",
    ),
    "sampler/staleness_steps": Metric(
        "steps", "Mean age of the samples of the step, in weight versions.", "At sampling.staleness: samplers lag."
    ),
    "sampler/stop_frac": Metric(
        "0..1", "Share of answers that ended by themselves.", "Near 0: raise sampling.max_new_tokens."
    ),
    "sampler/version": Metric(
        "count", "Oldest weight version confirmed by a sampler.", "Behind learner/version by more than the staleness."
    ),
    "sampler/weights_s": Metric("s", "Seconds of one weight update on a sampler.", "Near deadlines.weights_s."),
    # scorer
    "scorer/busy_s": Metric("s", "Seconds spent scoring, summed over scorers.", "Above learner/step_s: add scorers."),
    "scorer/failed": Metric(
        TOTAL, "Groups dropped because a head failed for good, so far.", "Above 0: read the scorer's log."
    ),
    "scorer/{head}_sample": Metric(
        "score", "Mean score of the step's own samples by this head.", "Rising for a harm head: training backfires."
    ),
    "scorer/{head}_sample_positive": Metric(  # before {head}_positive, whose pattern it also fits
        "score",
        "The same of the samples asked for under a positive instruction (NEAT).",
        "Near the negative-prompted ones' score: see learner/negative_prompt_agreement_frac.",
    ),
    "scorer/{head}_sample_negative": Metric(
        "score",
        "The same of the samples asked for under a negative instruction (NEAT).",
        "Near the positive-prompted ones' score: see learner/negative_prompt_agreement_frac.",
    ),
    "scorer/{head}_negative": Metric(
        "score",
        "Mean score of the step's human negatives by this head.",
        "Near the samples' score: the head cannot tell them apart.",
    ),
    "scorer/{head}_positive": Metric(
        "score",
        "Mean score of the step's human positives by this head.",
        "Near the negatives' score: the head cannot tell them apart.",
    ),
    # reference
    "reference/busy_s": Metric(
        "s",
        "Seconds spent on reference log-probs; of references that share a wave, the busiest one's.",
        "Above learner/step_s: add references.",
    ),
    "reference/cache_hits_frac": Metric(
        "0..1",
        "Share of the step's log-probs (one per response and reference model) that needed no computing: priced before, "
        "or met before in the same call. Groups dropped later count too.",
        "0 after the first pass over the data: references.cache_size is too small.",
    ),
    # guide (LD-Align): in the row of an iteration's first step, over that iteration
    "guide/fit_loss_nats": Metric(
        "nats", "Reconstruction loss of the fit's last step, per pair.", "Far above the steps before: lower guide.lr."
    ),
    "guide/nll_nats": Metric(
        "nats/token",
        "Reconstruction of held-out answers by the guide's decoder from the encoder's vector.",
        "Not below guide/control_nll_nats: the distances mean nothing; raise guide.steps or sampling.refresh_every.",
    ),
    "guide/control_nll_nats": Metric(
        "nats/token", "The same from a vector of zeros: the control.", "Near ln of the vocabulary: nothing was fitted."
    ),
    "guide/gain_nats": Metric(
        "nats/token",
        "What the vector is worth on held-out answers: control minus reconstruction.",
        "At or below 0: the distances mean nothing; raise guide.steps or sampling.refresh_every.",
    ),
    "guide/distance": Metric(
        "distance", "Mean latent distance of the own answers from the human ones.", "0: all answers are the human's."
    ),
    "guide/distance_spread": Metric(
        "ratio",
        "Standard deviation of the distances over their mean.",
        "Near 0: all weights are 1, and LD-Align is SPIN.",
    ),
    "guide/pairs": Metric(
        "count", "Own answers with a distance in this iteration.", "A handful: the guide has nothing to learn from."
    ),
    "guide/busy_s": Metric(
        "s", "Seconds of the fit and the distances.", "Above the time of training: lower guide.steps."
    ),
    # eval: figures of summary.json by the same names, measured every evaluation.every steps on a few fixed prompts
    "eval/version": Metric(
        "count",
        "Weight version that answered; `step` of the row.",
        "Far apart: the samplers get few versions (sampling.schedule).",
    ),
    "eval/answer_s": Metric(
        "s", "Seconds until the samplers had answered, waits for their turn included.", "Large: raise evaluation.every."
    ),
    "eval/refusal_frac_harmful_prompts": Metric(
        "0..1", "Share of refused held-out prompts.", "Near 1: everything is refused."
    ),
    "eval/refusal_frac_benign_prompts": Metric("0..1", "Share of refused benign prompts.", "Rising: over-refusal."),
    "eval/overrefusal_frac": Metric(
        "0..1", "Share of refused safe prompts that sound unsafe.", "Rising: the model shies at words, not at harm."
    ),
    "eval/mean_length_tokens": Metric(
        "tokens", "Mean length of answers to held-out prompts.", "Drifting by a third: length is being learned."
    ),
    "eval/repetition_frac": Metric(
        "0..1", "Mean share of repeated 4-grams in an answer to a held-out prompt.", "Above the start by 0.2: collapse."
    ),
    "eval/distinct_1": Metric("0..1", "Different tokens over those answers, of all.", "Falling: collapse."),
    "eval/distinct_2": Metric("0..1", "Different bigrams over those answers, of all.", "Falling: collapse."),
    "eval/distinct_3": Metric("0..1", "Different trigrams over those answers, of all.", "Falling: collapse."),
    "eval/{head}_score_benign_prompts": Metric(  # before {head}_score, as above
        "score",
        "Mean score of answers to benign prompts by this judge.",
        "Rising for a harm head: false alarms, or harm.",
    ),
    "eval/{head}_rate_benign_prompts": Metric(
        "0..1", "Share of answers to benign prompts above the judge's threshold.", "Rising: as above."
    ),
    "eval/{head}_score": Metric(
        "score",
        "Mean score of answers to held-out prompts by this judge.",
        "Rising for a harm head: training backfires.",
    ),
    "eval/{head}_rate": Metric(
        "0..1", "Share of answers to held-out prompts above the judge's threshold.", "Rising for a harm head: as above."
    ),
    # conductor: totals since the start, unless a rate
    "conductor/orders": Metric(TOTAL, "Orders issued so far.", "Far above trained: most work is thrown away."),
    "conductor/trained": Metric(TOTAL, "Groups trained on so far.", "Not rising: see the drops."),
    "conductor/dropped_stale": Metric(
        TOTAL, "Groups dropped because they were too old.", "Rising: raise sampling.staleness or add samplers."
    ),
    "conductor/dropped_gate": Metric(
        TOTAL, "Groups dropped by the reward gate.", "Most of them: sampling.reward_gate is too strict."
    ),
    "conductor/dropped_empty": Metric(
        TOTAL,
        "Groups left with fewer than sampling.min_samples usable samples.",
        "Rising: samples repeat (collapse).",
    ),
    "conductor/samples_dropped": Metric(
        TOTAL,
        "Own answers left out so far because they were empty or repeated another answer to their prompt.",
        "A growing share of all answers: the model repeats itself (collapse), or sampling.temperature is too low.",
    ),
    "conductor/samples_gated": Metric(
        TOTAL,
        "Own answers left out so far by the reward gate.",
        "Most of them: sampling.reward_gate is too strict. 0: it never closes, and could as well be null.",
    ),
    "conductor/samplers_replaced": Metric(
        TOTAL,
        "Samplers replaced so far, because they failed, stalled or did not confirm their weights.",
        "Above 0: see logs/sampler-*.log.",
    ),
    "conductor/dropped_lost": Metric(
        TOTAL, "Orders whose groups were lost with a node of the cluster so far.", "Above 0: look at the nodes."
    ),
    "conductor/failed": Metric(
        TOTAL, "Orders that ended so far because a reward head failed for good.", "Above 0: read the scorer's log."
    ),
    "conductor/reissued": Metric(
        TOTAL, "Orders issued again after a sampler failed.", "Rising: see logs/sampler-*.log."
    ),
    "conductor/buffer_groups": Metric(
        "groups", "Groups waiting to be trained on.", "Always full: learners are the bottleneck; always 0: samplers."
    ),
    "conductor/in_flight_groups": Metric("groups", "Groups being made.", "0 while learners wait: orders ran out."),
    "conductor/step_overhead_s": Metric(
        "s", "Step time that no role was busy in (orchestration).", "Above 5 % of learner/step_s: report it."
    ),
    NONFINITE: Metric(
        TOTAL, "Metric values so far that were NaN or infinite and stand as null.", "Any: look at the null column."
    ),
}

_VALUES = {"head": "[a-z][a-z0-9_]*", "name": "[a-z][a-z0-9_]*", "behaviour": "(?s:.+)"}  # of placeholders
_PATTERNS = {
    key: re.compile(re.sub(r"\\{(\w+)\\}", lambda found: f"(?P<{found[1]}>{_VALUES[found[1]]})", re.escape(key)))
    for key in METRICS
    if "{" in key
}


def catalogue_key(key: str) -> tuple[str, dict[str, str]]:
    """The key in METRICS, and what stands for its placeholders.

    scorer/toxicity_sample -> scorer/{head}_sample, {"head": "toxicity"}. Raises UnknownMetricError for any other key.
    """
    if key in METRICS and key not in _PATTERNS:
        return key, {}
    for pattern_key, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(key):
            return pattern_key, match.groupdict()
    raise UnknownMetricError(f"metric {key!r} is not in the catalogue; add a line to METRICS in metrics.py.")


def metric_for(key: str) -> Metric:
    """The catalogue's line for `key`. Raises UnknownMetricError."""
    return METRICS[catalogue_key(key)[0]]


class Sink(Protocol):
    """Where rows go beside metrics.jsonl: TensorBoard, and the trackers of trackers.py."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`values` are finite, by metric key."""

    def close(self) -> None:
        """Everything written is kept; no row comes after it."""


class TensorBoardSink:
    """<run>/tensorboard; `tensorboard --logdir runs` shows it."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "tensorboard"
        self._events: EventFileWriter | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # Imported at the first row: it takes half a second, which `--help` and tests of other things need not pay.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._events is None:
            self._events = EventFileWriter(str(self._folder), flush_secs=10)
        scalars = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


class MetricsWriter:
    """Appends rows to <run_dir>/metrics.jsonl, each complete on disk when `write` returns, and hands them to the sinks:
    TensorBoard, and those of `sinks`. A sink that fails is given up with a warning; it never ends the run.

    Opening an existing file goes on where it ended: a line torn by a kill is cut off, and `time_s` continues.
    """

    def __init__(self, run_dir: Path, *, tensorboard: bool = True, sinks: Sequence[Sink] = ()):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / FILE_NAME
        self.num_nonfinite = 0
        self.earlier_s = _repair_tail(self.path)  # how long the run had been going on before
        self._start = time.monotonic() - self.earlier_s
        self._file: IO[str] = self.path.open("a", encoding="utf-8", buffering=1)
        self._sinks: list[Sink] = [*([TensorBoardSink(run_dir)] if tensorboard else []), *sinks]

    def write(self, step: int, values: Mapping[str, float | int | None]) -> Row:
        """Write one row and return it. None means "not measured in this step". Raises UnknownMetricError."""
        return self._write({"step": step, "time_s": round(time.monotonic() - self._start, 3)}, values)

    def add(self, step: int, values: Mapping[str, float | int | None]) -> Row:
        """More of a step whose row may have been written: a line of its own, without a time, which `read_metrics` joins
        to that row."""
        return self._write({"step": step}, values)

    def _write(self, row: Row, values: Mapping[str, float | int | None]) -> Row:
        for key, value in values.items():
            metric_for(key)
            if value is not None and not math.isfinite(value):
                self.num_nonfinite += 1
                value = None
            row[key] = value if value is None or isinstance(value, int) else float(value)
        if self.num_nonfinite:
            row[NONFINITE] = self.num_nonfinite
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        measured = {key: float(value) for key, value in row.items() if "/" in key and value is not None}
        self._tell_sinks(lambda sink: sink.write(int(row["step"] or 0), measured))
        return row

    def close(self) -> None:
        self._file.close()
        self._tell_sinks(lambda sink: sink.close())
        self._sinks = []

    def _tell_sinks(self, tell: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                tell(sink)
            except Exception as error:  # whatever the library raises: metrics.jsonl has the row
                log.warning("%s is given up: %s: %s", type(sink).__name__, type(error).__name__, error)
                self._sinks.remove(sink)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[Row]:
    """Rows in the order of their steps. Lines of one step (a restart, values added later) are merged; the later value
    wins.

    `path` is a metrics.jsonl or a run directory. A torn last line (the run was killed) is left out.
    """
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} does not exist; name a run directory or its {FILE_NAME}.")
    by_step: dict[int, Row] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is empty or torn
        try:
            row = json.loads(line)
            by_step.setdefault(row["step"], {}).update(row)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number} is not a row of metrics ({error!r}); remove the line.") from error
    return [by_step[step] for step in sorted(by_step)]


def time_so_far(path: Path) -> float:
    """`time_s` of the last row of a metrics.jsonl or a run directory; 0.0 where there is none."""
    path = path / FILE_NAME if path.is_dir() else path
    rows = read_metrics(path) if path.is_file() else []
    return max((float(row.get("time_s") or 0.0) for row in rows), default=0.0)


def _repair_tail(path: Path) -> float:
    """Cut off a torn last line and return the last row's time_s (0.0 for a new file)."""
    if not path.is_file():
        return 0.0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return time_so_far(path)
