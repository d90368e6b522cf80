"""All that a run decides before Ray starts: models found, data checked, number types chosen, prompts tokenised."""

from dataclasses import dataclass
from pathlib import Path

from negalign_ray.config import Config
from negalign_ray.data.chat import ChatTokenizer, load_chat
from negalign_ray.data.instructions import BenignRow, Instruction, load_benign, load_instructions
from negalign_ray.data.load import LoadedData, load_prompts
from negalign_ray.methods import METHODS, Method, Needs
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
        return load_chat(self.model_path, template=self.config.model.chat_template)


def make_plan(config: Config) -> Plan:
    """Checks all that can be checked without starting anything. Raises ConfigError, ModelError or DataError."""
    # Ray's workers do not share the driver's working directory, so a relative path would name other folders there.
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": config.run.dir.resolve()})})
    model_path = resolve_model(config.model.path).resolve()
    rpos_path = resolve_model(config.references.rpos).resolve() if config.references.rpos else model_path
    rneg_path = resolve_model(config.references.rneg).resolve() if config.references.rneg else rpos_path
    for head in (*config.scorers.heads, *config.evaluation.heads):
        check_head(head)
    chat = load_chat(model_path, template=config.model.chat_template)
    data = load_prompts(config.data, chat, seed=config.run.seed, needs=needed_roles(METHODS[config.method.name].needs))
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


def needed_roles(needs: Needs) -> frozenset[Role]:
    """Human responses that every training prompt must have."""
    return frozenset(
        role for role, needed in ((Role.NEGATIVE, needs.negatives), (Role.POSITIVE, needs.positives)) if needed
    )
