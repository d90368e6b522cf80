"""Everything a run has decided before Ray starts: models found, data checked, number types chosen, prompts tokenised."""

from dataclasses import dataclass
from pathlib import Path

from negalign_ray.config import Config
from negalign_ray.data.chat import ChatTokenizer, load_tokenizer
from negalign_ray.data.instructions import BenignRow, Instruction, load_benign, load_instructions
from negalign_ray.data.load import LoadedData, load_prompts
from negalign_ray.errors import ConfigError
from negalign_ray.methods import METHODS, Method, missing
from negalign_ray.models.dtype import resolve_dtype
from negalign_ray.models.packaged import resolve_model
from negalign_ray.records import Role
from negalign_ray.rewards import check_head


@dataclass(frozen=True)
class Plan:
    config: Config
    model_path: Path
    rpos_path: Path
    rneg_path: Path
    sampler_dtype: str
    learner_dtype: str
    stop_ids: tuple[int, ...]
    data: LoadedData
    benign: tuple[BenignRow, ...]
    instructions: tuple[Instruction, ...]

    @property
    def method(self) -> Method:
        return METHODS[self.config.method.name]

    @property
    def num_samples(self) -> int:
        """K, or 0 for a method that needs no answers of the model's own."""
        return self.config.sampling.num_samples if self.method.needs.samples else 0

    @property
    def reference_pools(self) -> dict[tuple[str, ...], Path]:
        """Which references share a pool of actors: one pool when rpos and rneg are one model, else two."""
        if not self.method.needs.references:
            return {}
        if self.rpos_path == self.rneg_path:
            return {("rpos", "rneg"): self.rpos_path}
        return {("rpos",): self.rpos_path, ("rneg",): self.rneg_path}

    def chat(self) -> ChatTokenizer:
        return open_chat(self.config, self.model_path)


def open_chat(config: Config, model_path: Path) -> ChatTokenizer:
    return ChatTokenizer(load_tokenizer(model_path), config.model.chat_template)


def make_plan(config: Config) -> Plan:
    """Checks all that can be checked without starting anything. Raises ConfigError, ModelError or DataError."""
    model_path = resolve_model(config.model.path)
    rpos_path = resolve_model(config.references.rpos) if config.references.rpos else model_path
    rneg_path = resolve_model(config.references.rneg) if config.references.rneg else rpos_path
    for head in (*config.scorers.heads, *config.evaluation.heads):
        check_head(head)
    chat = open_chat(config, model_path)
    data = load_prompts(config.data, chat, seed=config.run.seed)
    _require_what_the_method_needs(config, data)
    return Plan(
        config=config,
        model_path=model_path,
        rpos_path=rpos_path,
        rneg_path=rneg_path,
        sampler_dtype=resolve_dtype(config.model.dtype, gpus=config.samplers.gpus),
        learner_dtype=resolve_dtype(config.learners.dtype, gpus=config.learners.gpus),
        stop_ids=chat.end_ids,
        data=data,
        benign=load_benign(config.data.benign_path),
        instructions=load_instructions(config.sampling.instructions),
    )


def _require_what_the_method_needs(config: Config, data: LoadedData) -> None:
    roles = {response.role for prompt in data.train for response in prompt.responses}
    lack = missing(
        METHODS[config.method.name].needs,
        has_negatives=Role.NEGATIVE in roles,
        has_positives=Role.POSITIVE in roles,
    )
    if lack:
        raise ConfigError(f"method.name={config.method.name}: {lack}")
