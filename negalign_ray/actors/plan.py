"""All that a run decides before Ray starts: models found, data checked, number types chosen, prompts tokenised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negalign_ray.actors.plan_checks import check_plan, check_settings, instruction_tokens
from negalign_ray.config import LATENT_DISTANCE, Config, CustomConfig, HeadConfig, NEATConfig
from negalign_ray.data.benign import load_benign
from negalign_ray.data.chat import ChatTokenizer, load_chat, require_same_tokens
from negalign_ray.data.choices import load_choices
from negalign_ray.data.instructions import Instruction, load_instructions
from negalign_ray.data.load import LoadedData, load_prompts
from negalign_ray.data.overrefusal import load_overrefusal
from negalign_ray.data.split import in_seeded_order
from negalign_ray.errors import ConfigError
from negalign_ray.evaluation.probes import Probes, build_probes
from negalign_ray.methods import Method, Needs, method_of
from negalign_ray.methods.groups import RewardSource
from negalign_ray.models.dtype import ComputeDtype, resolve_dtype
from negalign_ray.models.packaged import resolve_model
from negalign_ray.records import Prompt, Role
from negalign_ray.rewards import check_head
from negalign_ray.rewards.chat_judge import ChatJudge
from negalign_ray.user_code import absolute_target


@dataclass(frozen=True)
class Plan:
    config: Config
    model_path: Path
    rpos_path: Path
    rneg_path: Path
    sampler_dtype: ComputeDtype
    learner_dtype: ComputeDtype
    stop_ids: tuple[int, ...]
    data: LoadedData
    benign: tuple[Prompt, ...]
    probes: Probes | None  # None = no evaluation
    instructions: tuple[Instruction, ...]
    instruction_tokens: int  # what the longest of them adds to a prompt

    @property
    def max_answer_tokens(self) -> int:
        return max(self.config.sampling.max_new_tokens, self.config.evaluation.max_new_tokens)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence a sampler can meet: instruction, prompt and answer."""
        return self.config.data.max_prompt_tokens + self.instruction_tokens + self.max_answer_tokens

    @property
    def method(self) -> Method:
        return method_of(self.config.method)

    @property
    def needs(self) -> Needs:
        return self.method.needs(self.config.method)

    @property
    def reward(self) -> RewardSource | None:
        """What the method trains on; None for a method without rewards. LD-Align reads the guide's distances."""
        if self.config.uses_guide:
            return RewardSource(LATENT_DISTANCE)
        if not self.needs.reward:
            return None
        head = next(head for head in self.config.scorers.heads if head.name == self.config.reward_head)
        return RewardSource(head.name, sign=-1.0 if head.direction == "harm" else 1.0)

    @property
    def candidates(self) -> NEATConfig | None:
        """How long candidate lists are, and how many; None for a method that trains on each answer once."""
        method = self.config.method
        if not self.needs.candidates:
            return None
        assert isinstance(method, NEATConfig), f"{method.name} keeps candidates without settings for them"
        return method

    @property
    def num_samples(self) -> int:
        """K, or 0 for a method that trains on no answers of the model's own."""
        return 0 if self.needs.samples == "unused" else self.config.sampling.num_samples

    @property
    def reference_pools(self) -> dict[tuple[str, ...], Path]:
        """Which references share a pool of actors: one pool when rpos and rneg are one model, else two."""
        if not self.needs.references:
            return {}
        if self.rpos_path == self.rneg_path:
            return {("rpos", "rneg"): self.rpos_path}
        return {("rpos",): self.rpos_path, ("rneg",): self.rneg_path}

    def chat(self) -> ChatTokenizer:
        return load_chat(self.model_path, template=self.config.model.chat_template)


def make_plan(config: Config) -> Plan:
    """Checks all that can be checked without starting anything. Raises ConfigError, ModelError or DataError."""
    config = with_absolute_paths(config)
    model_path = resolve_model(config.model.path).resolve()
    rpos_path = resolve_model(config.references.rpos).resolve() if config.references.rpos else model_path
    rneg_path = resolve_model(config.references.rneg).resolve() if config.references.rneg else rpos_path
    for setting, path in (("references.rpos", rpos_path), ("references.rneg", rneg_path)):
        if path != model_path:
            require_same_tokens(path, model_path, setting=setting)
    config = _with_backbone(config, model_path)
    learner_dtype = resolve_dtype(config.learners.dtype, gpus=config.learners.gpus)
    check_settings(config, learner_dtype=learner_dtype)
    for head in (*config.scorers.heads, *config.evaluation.heads):
        check_head(head)
    if config.evaluation.enabled and config.evaluation.judge is not None:
        ChatJudge.load(config.evaluation.judge)
    chat = load_chat(model_path, template=config.model.chat_template)
    data = load_prompts(config.data, chat, seed=config.run.seed, needs=needed_roles(config), remedy=_remedy(config))
    benign = load_benign(config.data.benign_path, chat, limits=config.data)
    instructions = load_instructions(config.sampling.instructions)
    plan = Plan(
        config=config,
        model_path=model_path,
        rpos_path=rpos_path,
        rneg_path=rneg_path,
        sampler_dtype=resolve_dtype(config.model.dtype, gpus=config.samplers.gpus),
        learner_dtype=learner_dtype,
        stop_ids=chat.end_ids,
        data=data,
        benign=benign,
        probes=_probes(config, data, benign, chat) if config.evaluation.enabled else None,
        instructions=instructions,
        instruction_tokens=instruction_tokens(chat, instructions),
    )
    check_plan(plan)
    return plan


def _probes(config: Config, data: LoadedData, benign: tuple[Prompt, ...], chat: ChatTokenizer) -> Probes:
    # One order whatever the method needs, so that methods are asked the same.
    heldout = in_seeded_order((*data.heldout, *data.heldout_rest), seed=config.run.seed)
    evaluation, limits = config.evaluation, config.data
    questions = load_choices(evaluation.choices_path, chat, limits=limits)
    overrefusal = (
        load_overrefusal(evaluation.overrefusal_path, chat, limits=limits) if evaluation.num_overrefusal else ()
    )
    return build_probes(heldout, benign, questions, overrefusal, config=evaluation, seed=config.run.seed)


def _with_backbone(config: Config, model_path: Path) -> Config:
    """The guide's backbone as a folder, checked; ModelError when it does not read the policy's tokens."""
    if not config.uses_guide or config.guide.backbone is None:
        return config
    backbone = resolve_model(config.guide.backbone).resolve()
    require_same_tokens(backbone, model_path, setting="guide.backbone")
    return config.model_copy(update={"guide": config.guide.model_copy(update={"backbone": str(backbone)})})


def with_absolute_paths(config: Config) -> Config:
    """Ray's workers do not share the driver's working directory, so a relative path would name other folders there."""
    sections: dict[str, Any] = {"run": config.run.model_copy(update={"dir": config.run.dir.resolve()})}
    if isinstance(config.method, CustomConfig):
        sections["method"] = config.method.model_copy(update={"target": absolute_target(config.method.target)})
    for name in ("scorers", "evaluation"):
        section = getattr(config, name)
        sections[name] = section.model_copy(update={"heads": tuple(map(_with_absolute_target, section.heads))})
    return config.model_copy(update=sections)


def _with_absolute_target(head: HeadConfig) -> HeadConfig:
    path = Path(head.target)
    target = str(path.resolve()) if path.exists() else absolute_target(head.target)
    return head.model_copy(update={"target": target})


def _remedy(config: Config) -> str:
    """What makes bad answers alone enough, for a method that can rank own answers too."""
    needs = method_of(config.method).needs(config.method)
    if needs.samples != "optional" or config.sampling.num_samples:
        return ""
    return (
        f"Bad answers alone are enough for method.name={config.method.name} with sampling.num_samples of 1 or more "
        "(it is 0): its own answers are candidates then."
    )


def needed_roles(config: Config) -> frozenset[Role]:
    """Human responses that every training prompt must have. ConfigError: a method of samples, but none are drawn."""
    method, num_samples = config.method, config.sampling.num_samples
    needs = method_of(method).needs(method)
    if needs.samples == "required" and num_samples == 0:
        raise ConfigError(
            f"sampling.num_samples=0, but method.name={method.name} trains on the model's own answers; set 1 or more."
        )
    if needs.samples == "optional" and num_samples == 0:
        return frozenset({Role.NEGATIVE, Role.POSITIVE})  # the human answers are all that there is to rank
    return frozenset(
        role for role, needed in ((Role.NEGATIVE, needs.negatives), (Role.POSITIVE, needs.positives)) if needed
    )
