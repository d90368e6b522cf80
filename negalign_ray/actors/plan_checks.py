"""What a plan must hold beside the settings' own rules: each check knows the model, the data or the instructions.

Everything here would otherwise fail inside a started role, or not fail and do something else than the settings say.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from negalign_ray.actors.device_checks import check_devices
from negalign_ray.config import CheckpointsConfig, Config, CustomConfig, NEATConfig
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.data.instructions import Instruction
from negalign_ray.engines.uploads import open_remote
from negalign_ray.errors import ConfigError
from negalign_ray.methods.custom_check import check_method
from negalign_ray.metrics import UnknownMetricError, metric_for
from negalign_ray.models.dtype import ComputeDtype, require_exact_accumulation
from negalign_ray.records import Polarity, Prompt
from negalign_ray.trackers import require_installed

if TYPE_CHECKING:
    from negalign_ray.actors.plan import Plan

# Prompts that an instruction is put before: one where it makes a system turn (which may replace a default one of the
# template), one where it joins a turn that is there.
PROBES = ((("user", "Hello"),), (("system", "Be brief."), ("user", "Hello")))
TOKENS_TO_SPARE = 16  # an instruction may be cut into a few more tokens beside another text than beside the probes


def check_settings(config: Config, *, learner_dtype: ComputeDtype) -> None:
    """Before the data is read. Raises ConfigError."""
    if isinstance(config.method, CustomConfig):
        check_method(config.method)
    check_devices(config)
    require_exact_accumulation(config.learners.zero_stage, learner_dtype)
    require_installed(config.run.trackers)
    check_checkpoints(config.checkpoints)


def check_checkpoints(checkpoints: CheckpointsConfig) -> None:
    """A URL that cannot be opened, or a metric that no run has."""
    if checkpoints.url is not None:
        open_remote(checkpoints.url)
    if checkpoints.keep_best is not None:
        if checkpoints.keep_best.startswith("eval/"):
            raise ConfigError(
                f"checkpoints.keep_best={checkpoints.keep_best!r} is measured after its checkpoint has been written; "
                "name a metric of every step, such as learner/heldout_negative_logprob_nats or sampler/entropy_nats."
            )
        try:
            metric_for(checkpoints.keep_best)
        except UnknownMetricError:
            raise ConfigError(
                f"checkpoints.keep_best={checkpoints.keep_best!r} is no metric of a run; name one of docs/metrics.md."
            ) from None


def check_plan(plan: "Plan") -> None:
    """Raises ConfigError."""
    _check_polarities(plan)
    _check_context(plan)
    _check_rows(plan)


def _check_polarities(plan: "Plan") -> None:
    """NEAT ranks what was asked for well against what was asked for badly; without the latter it is RRHF online."""
    sampling, method = plan.config.sampling, plan.config.method
    if not isinstance(method, NEATConfig) or plan.num_samples == 0 or sampling.instructions == "neat_pp":
        return
    num = Counter(instruction.polarity for instruction in plan.instructions)
    if method.positive_only:
        if set(num) == {Polarity.POSITIVE}:
            return
        raise ConfigError(
            f"method.positive_only=true, but sampling.instructions={sampling.instructions or 'null'} has "
            f"{num[Polarity.POSITIVE]} with polarity positive, {num[Polarity.NEGATIVE]} negative and {num[None]} "
            "without; name a file whose entries all have `polarity: positive`, or set sampling.instructions=neat_pp."
        )
    if num[Polarity.POSITIVE] and num[Polarity.NEGATIVE]:
        return
    raise ConfigError(
        f"method.name=neat samples under good and under bad instructions, but sampling.instructions="
        f"{sampling.instructions or 'null'} has {num[Polarity.POSITIVE]} with polarity positive, "
        f"{num[Polarity.NEGATIVE]} negative and {num[None]} without. Set sampling.instructions=neat, or give the "
        "entries of a file of your own a `polarity`. Without bad instructions on purpose: sampling.instructions="
        "neat_pp, or method.positive_only=true with a file of good ones."
    )


def instruction_tokens(chat: ChatTokenizer, instructions: tuple[Instruction, ...]) -> int:
    """Tokens that the longest instruction adds to a prompt, a few to spare; 0 without instructions."""
    added = [
        len(chat.prompt_ids(probe, instruction.text)) - len(chat.prompt_ids(probe))
        for instruction in instructions
        for probe in PROBES
    ]
    return max(0, max(added)) + TOKENS_TO_SPARE if added else 0


def _check_context(plan: "Plan") -> None:
    """The sampler's room must be within the model's; `transformers` would go on beyond it and write nonsense."""
    limit = max_positions(plan.model_path)
    if limit is None or plan.max_model_len <= limit:
        return
    data, answer = plan.config.data, plan.max_answer_tokens
    rest = plan.instruction_tokens + answer
    remedy = f"Lower data.max_prompt_tokens to {limit - rest}, shorten" if limit > rest else "Shorten"
    raise ConfigError(
        f"samplers need room for {plan.max_model_len} tokens: data.max_prompt_tokens={data.max_prompt_tokens}, "
        f"{plan.instruction_tokens} of the longest of sampling.instructions={plan.config.sampling.instructions}, and "
        f"{answer} of an answer (sampling.max_new_tokens, evaluation.max_new_tokens); {plan.config.model.path} has "
        f"{limit} positions (max_position_embeddings). {remedy} instructions or answers, or choose another model."
    )


def _check_rows(plan: "Plan") -> None:
    """Prompt and human answer must be within the positions of every model that reads them."""
    data = plan.data
    questions = plan.probes.choices if plan.probes else ()
    prompts = (*data.train, *data.heldout, *data.heldout_rest, *plan.benign, *(each.prompt for each in questions))
    longest, prompt = max(((_row_tokens(prompt), prompt) for prompt in prompts), key=lambda pair: pair[0])
    for setting, path in (
        ("model.path", plan.model_path),
        ("references.rpos", plan.rpos_path),
        ("references.rneg", plan.rneg_path),
    ):
        limit = max_positions(path)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"the prompt of row {prompt.prompt_id} and its longest answer have {longest} tokens, and "
                f"{setting}={path} has {limit} positions (max_position_embeddings); lower data.max_prompt_tokens and "
                f"data.max_response_tokens to {limit} in all, with data.on_bad_row=skip to leave longer rows out."
            )


def _row_tokens(prompt: Prompt) -> int:
    return len(prompt.token_ids) + max((len(response.token_ids) for response in prompt.responses), default=0)


def max_positions(folder: Path) -> int | None:
    """Tokens that the model of `folder` can tell the places of; None where its config.json sets no fixed number."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("factor"):  # the positions are stretched, by a rule that each model type has for itself
        return None
    return config.get("max_position_embeddings") or config.get("n_positions")
