"""Run directories made up for tests: gardening instead of harm, numbers that can be checked by hand."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from negalign_ray.config import Config
from negalign_ray.evaluation.side import Answers, Likelihoods, Side
from negalign_ray.events import Event, EventKind
from negalign_ray.settings import dump_config

HOSTILE = "</script><img src=x onerror=\"document.title='run'\">"  # must stay text wherever it ends up
TITLES = {
    "judge_score": ("judge, mean", "lower"),
    "judge_score_benign_prompts": ("judge, mean, benign prompts", "lower"),
    "judge_rate": ("judge > 0.5, share", "lower"),
    "benign_perplexity": ("perplexity, benign answers", "lower"),
    "distinct_2": ("different bigrams (distinct-2)", "higher"),
    "repetition_frac": ("repeated 4-grams", "lower"),
    "mean_length_tokens": ("length (tokens)", "unchanged"),
    "kl_per_token": ("KL to the reference, per token", "lower"),
    "own_answers_logprob": ("log-prob, own answers before", "higher"),
}
BEHAVIOURS = ("weeds", "frost", "slugs")
HEAD = {"name": "judge", "kind": "linear", "target": "judges/one"}
CONFIG = {
    "method": {"name": "d2o", "alpha": 0.01},
    "data": {"path": "garden.jsonl"},
    "learners": {"steps": 60, "groups_per_step": 2},
    "sampling": {"num_samples": 2, "max_new_tokens": 16},
    "scorers": {"heads": [{"name": "gate", "kind": "linear", "target": "judges/two"}]},
    "evaluation": {"heads": [HEAD]},
}


def summary_of(figures: Mapping[str, tuple[float, float, float | None, float | None]], **more: Any) -> dict[str, Any]:
    """A summary.json. Figures are key -> (before, after, low, high), the bounds being those of the change."""
    return {
        "before": {key: row[0] for key, row in figures.items()},
        "after": {key: row[1] for key, row in figures.items()},
        "difference": {
            key: {"mean": after - before, "low": low, "high": high}
            for key, (before, after, low, high) in figures.items()
        },
        "ratio": {},
        "intervals": {
            "before": {key: {"low": row[0] - 0.05, "high": row[0] + 0.05, "num": 40} for key, row in figures.items()},
            "after": {key: {"low": row[1] - 0.05, "high": row[1] + 0.05, "num": 40} for key, row in figures.items()},
        },
        "by_behaviour": {},
        "figures": {key: {"title": TITLES[key][0], "better": TITLES[key][1]} for key in figures},
        "heads": {"judge": {"kind": "linear", "direction": "harm", "threshold": 0.5}},
        "steps": 60,
        "wall_s": 300.0,
        "orders": {"issued": 130, "trained": 120},
    } | more


def by_behaviour(values: Mapping[str, tuple[float, float, float, float]]) -> dict[str, Any]:
    return {
        name: {
            "before": {"judge_score": before},
            "after": {"judge_score": after},
            "difference": {"judge_score": {"mean": after - before, "low": low, "high": high}},
        }
        for name, (before, after, low, high) in values.items()
    }


def rows(steps: int = 60) -> list[dict[str, Any]]:
    """Metrics: a step takes 4 s, of which 1 s computing, 2 s waiting, 0.5 s gathering; samplers are busy for 1 s."""
    found = []
    for step in range(1, steps + 1):
        wave = math.sin(step * 1.7)
        row = {
            "step": step,
            "time_s": 4.0 * step,
            "learner/loss": 0.693 * math.exp(-step / 80) + 0.01 * wave,
            "learner/anchor_nats": 0.006 * step + 0.02 * wave,
            "learner/negative_nats": -0.004 * step,
            "learner/margin_nats": 0.01 * step + 0.02 * wave,
            "learner/sample_logratio_nats": 0.05 * step + 0.2 * wave,
            "learner/negative_logratio_nats": -0.08 * step - 0.1 * wave,
            "learner/kl_nats": 0.004 * step + 0.005 * wave,
            "learner/grad_norm": 6.0 - 0.03 * step + 0.3 * wave,
            "learner/step_s": 4.0,
            "learner/compute_s": 1.0,
            "learner/pull_wait_s": 2.0,
            "learner/gather_s": 0.5,
            "sampler/busy_s": 1.0,
            "sampler/entropy_nats": 2.4 - 0.006 * step + 0.03 * wave,
            "sampler/repetition_frac": 0.05 + 0.001 * step,
            "sampler/staleness_steps": 0.0,
            "scorer/gate_negative": 0.6 + 0.03 * wave,
            "scorer/gate_sample": 0.3 - 0.002 * step,
            "reference/busy_s": 0.4,
            "conductor/dropped_gate": step // 6,
        }
        for number, behaviour in enumerate(BEHAVIOURS):
            row[f"behaviour/{behaviour}/margin_nats"] = (0.03 + 0.02 * number) * step + 0.2 * wave
            row[f"behaviour/{behaviour}/num_groups"] = 3 - number
        if step % 10 == 0:
            row["learner/benign_logprob_nats"] = -3.60 - 0.0005 * step
            row["learner/heldout_negative_logprob_nats"] = -3.90 - 0.004 * step
            row["learner/mismatch_nats"] = 0.01
        found.append(row)
    return found


def asked(num: int = 24) -> list[dict[str, Any]]:
    """Rows of samples/evaluation.jsonl: prompt 0 and its answers are hostile to a page that forgets to escape."""
    found = [
        {
            "prompt": f"How do I keep bed {index} free of {BEHAVIOURS[index % 3]}?",
            "behaviour": BEHAVIOURS[index % 3],
            "before": f"Leave bed {index} alone and hope for the best, {'as ever, ' * (index % 5)}that is easiest.",
            "after": f"Mulch bed {index} in autumn and check it every week in spring.",
        }
        for index in range(num)
    ]
    found[0] |= {"prompt": f"What is {HOSTILE}?", "before": HOSTILE, "after": f"It is {HOSTILE}"}
    return found


def side(texts: Sequence[str], scores: Sequence[float], *, num_benign: int = 2) -> Side:
    """The last `num_benign` texts answer benign prompts."""
    split = len(texts) - num_benign

    def answers(part: slice) -> Answers:
        num = len(texts[part])
        ids = tuple(range(part.start, part.start + num))
        tokens = tuple(tuple(range(3)) for _ in range(num))
        return Answers(ids, (None,) * num, tuple(texts[part]), tokens, {"judge": tuple(scores[part])})

    none = Likelihoods()
    return Side(answers(slice(0, split)), answers(slice(split, len(texts))), none, none, none, none)


def groups(num: int = 120, *, rank: int = 0) -> list[dict[str, Any]]:
    """Rows of samples/rank-N.jsonl, two a step."""
    return [
        {
            "step": index // 2 + 1,
            "order_id": index,
            "prompt_id": index % 40,
            "behaviour": BEHAVIOURS[index % 3],
            "prompt": f"Rank {rank} asks what to do about {BEHAVIOURS[index % 3]} in row {index}.",
            "responses": [
                _response("negative", f"Ignore row {index}.", 0.7),
                _response(
                    "sample", f"Water row {index} at dawn.", 0.2, instruction="patient", weight_version=index // 2
                ),
            ],
        }
        for index in range(num)
    ]


def _response(role: str, text: str, score: float, **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "rewards": {"gate": score}, "num_tokens": 5, **more}


FIGURES: dict[str, tuple[float, float, float | None, float | None]] = {
    "judge_score": (0.42, 0.18, -0.28, -0.21),
    "judge_rate": (0.36, 0.10, -0.33, -0.20),
    "benign_perplexity": (44.9, 44.6, -0.96, 0.35),
    "repetition_frac": (0.05, 0.11, 0.03, 0.09),
    "kl_per_token": (0.0, 0.13, 0.12, 0.14),
    "own_answers_logprob": (-37.0, -39.0, -2.8, -1.9),
}
FIRING = {
    "guard": "own_answers", "metric": "learner/kl_nats", "first_step": 31, "step": 35, "value": 0.62, "limit": 0.5,
    "action": "warn", "reason": "guard own_answers at step 35: own answers are less likely than under the reference",
}  # fmt: skip
EVENTS = (
    Event(EventKind.SCALE, "samplers: 1 to 2 wanted", role="sampler", time_s=24.0),
    Event(EventKind.CHECKPOINT, "checkpoint of step 20", step=20, time_s=80.0),
    Event(EventKind.FAULT, "the actor died", role="sampler", rank=1, step=22, weight_version=22, time_s=90.0),
    Event(EventKind.REPLACE, "sampler 1 was replaced", role="sampler", rank=1, step=22, weight_version=22, time_s=96.0),
    Event(EventKind.GUARD, FIRING["reason"], step=35, time_s=140.0),
    Event(EventKind.CHECKPOINT, "checkpoint of step 40", step=40, time_s=160.0),
)  # fmt: skip
CARD = {
    "started": "2026-05-03T10:20:30+00:00",
    "versions": {"negalign-ray": "1.0", "ray": "2.60.0"},
    "machine": {"cores": 4.0, "memory_bytes": 16 * 2**30, "gpus": []},
    "dtypes": {"samplers": "float32", "learners": "float32"},
    "data": {
        "source": "garden.jsonl", "format": "negatives", "num_rows": 90, "num_train": 60, "num_heldout": 20,
        "total": {"prompts": 80, "negatives": 80, "positives": 12},
        "by_behaviour": {name: {"prompts": 27, "negatives": 27, "positives": 4} for name in BEHAVIOURS},
        "prompt_lengths": {"p50": 9, "p90": 12, "p99": 20, "max": 21},
        "response_lengths": {"p50": 8, "p90": 11, "p99": 15, "max": 16},
        "problems": {"duplicate": 10},
    },
}  # fmt: skip


def write_json_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(folder: Path, *, figures: Mapping[str, Any] = FIGURES, after: float = 0.15, **more: Any) -> Path:
    """A finished run with every file. Answer i scores 0.4 + i / 100 before and `after` + i / 100 after."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(Config.model_validate(CONFIG | {"run": {"name": folder.name}})))
    behaviours = by_behaviour({
        "weeds": (0.45, 0.16, -0.36, -0.22), "frost": (0.30, 0.28, -0.08, 0.05), "slugs": (0.20, 0.31, 0.04, 0.19),
    })  # fmt: skip
    summary = summary_of(figures, by_behaviour=behaviours, guards=[FIRING], stopped_by=None, rolled_back_to=None)
    (folder / "summary.json").write_text(json.dumps(summary | more))
    (folder / "card.json").write_text(json.dumps(CARD))
    write_json_lines(folder / "metrics.jsonl", rows())
    write_json_lines(folder / "events.jsonl", [asdict(event) for event in EVENTS])
    prompts = asked()
    write_json_lines(folder / "samples" / "evaluation.jsonl", prompts)
    write_json_lines(folder / "samples" / "rank-0.jsonl", groups())
    sides = {
        name: side([row[name] for row in prompts], [start + index / 100 for index in range(len(prompts))]).to_json()
        for name, start in (("before", 0.4), ("after", after))
    }
    (folder / "evaluation.json").write_text(json.dumps(sides))
    return folder
