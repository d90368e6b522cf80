"""Every setting of a run: frozen, typed, explained beside the field. Paper values unless marked [choice] (ours).

The user sets two batch numbers, `learners.groups_per_step` (prompts per optimizer step, all ranks together) and
`learners.micro_batch_tokens` (memory bound of one forward/backward); everything else about batches is derived.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Dtype = Literal["auto", "bfloat16", "float32"]
OBJECT_STORE_BYTES = 4 * 1024**3  # of a cluster started for one run; weights of two versions and the groups fit well
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as Ray and Kubernetes spell labels
LabelName = Annotated[str, Field(pattern=rf"^([a-z0-9.-]+/)?{_LABEL}$")]
LabelValue = Annotated[str, Field(pattern=rf"^{_LABEL}$")]
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
LATENT_DISTANCE = "latent_distance"  # what the guide writes beside the scores of the heads


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class RunConfig(Section):
    name: str = Field(default="run", pattern=f"^{RUN_NAME}$")  # the folder name
    dir: Path = Path("runs")  # the run lives in <dir>/<name>
    seed: NonNegativeInt = 0  # of the split, the order of prompts, and sampling
    overwrite: bool = False  # False: a run directory that already holds results is refused
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()  # beside metrics.jsonl and TensorBoard; offline,
    # in the run directory (see trackers.py)
    prometheus: bool = False  # true = metrics also go to the metrics endpoint of Ray (docs/monitoring.md)


class ModelConfig(Section):
    path: str = "smollm2-135m-instruct"  # a folder, a hub name, or a packaged model
    dtype: Dtype = "auto"  # auto = bfloat16 where the hardware multiplies it natively, else float32
    chat_template: Path | None = None  # a jinja file that replaces the tokenizer's own template


class DataConfig(Section):
    path: str = "quickstart"  # JSONL, Parquet or CSV file, a `datasets` folder or hub name, or "quickstart"
    format: Literal["auto", "negatives", "pairs", "hh_transcripts", "unpaired", "pku_saferlhf"] = "auto"
    split: str = "train"  # of a `datasets` folder or hub name
    behaviour_column: str = "behaviour"  # names the kind of harm, for reports and the split
    max_prompt_tokens: PositiveInt = 256  # longer prompts are broken rows
    max_response_tokens: PositiveInt = 128  # longer answers are broken rows
    on_bad_row: Literal["refuse", "skip"] = "refuse"  # skip = leave broken rows out and count them
    limit: PositiveInt | None = None  # use only the first rows (after the seeded shuffle)
    heldout_frac: Fraction = 0.15  # share of prompts never trained on, split by prompt
    heldout_path: str | None = None  # a file of its own for held-out rows instead
    benign_path: str | None = None  # {prompt, response} rows for refusals and perplexity; None = the packaged set


class D2OConfig(Section):
    """Distributional Dispreference Optimization (arXiv 2403.03419, Eq. 3)."""

    name: Literal["d2o"] = "d2o"
    alpha: NonNegativeFloat = 0.1  # a: weight of the negative term
    beta: NonNegativeFloat = 0.1  # b: weight of the anchor (own samples) term


class NEATConfig(Section):
    """Negative-prompt-driven alignment (arXiv 2410.12194)."""

    name: Literal["neat"] = "neat"
    reward_head: str = "reward"  # the entry of scorers.heads that ranks the candidates
    ft_weight: NonNegativeFloat = 1.0  # lambda: weight of the language-modelling term [choice]
    positive_only: bool = False  # NEAT-PP with a file of good instructions of your own; packaged: neat_pp [choice]
    max_candidates: PositiveInt = 8  # M: own answers in a prompt's candidate list; earlier rounds fill it up [choice]
    max_lists: PositiveInt = 20_000  # prompts whose list is kept, 2 kB an answer; the longest unused goes [choice]


class CLHAConfig(Section):
    """Contrastive learning for human alignment (arXiv 2403.16649)."""

    name: Literal["clha"] = "clha"
    reward_head: str = "reward"  # the entry of scorers.heads that rescores every candidate
    margin: NonNegativeFloat = 3.0  # m: gap threshold and margin, on the raw scale of that head
    sft_weight: NonNegativeFloat = 0.05  # lam: weight of the adaptive SFT term
    sft_min_reward: float = 0.0  # that term is on where the best reward is above it; the paper's 0 fits a reward model
    # around 0, not minus a probability of harm, which is never positive [choice]


class LDAlignConfig(Section):
    """Latent-distance-guided alignment (arXiv 2404.06390)."""

    name: Literal["ld_align"] = "ld_align"
    beta: PositiveFloat = 0.1  # b [choice]
    weight_mode: Literal["normalised", "raw", "constant"] = "normalised"  # of the latent distances [choice]
    max_weight: PositiveFloat = 5.0  # weights are clipped to 0..max_weight [choice]


class DPOConfig(Section):
    """Direct Preference Optimization (arXiv 2305.18290). D2O's paper has winners=human as DPO-Ori, both as DPO-Full."""

    name: Literal["dpo"] = "dpo"
    beta: PositiveFloat = 0.1
    winners: Literal["human", "samples", "human_and_samples"] = "human"  # over the human negatives


class IPOConfig(Section):
    """Identity Preference Optimization (arXiv 2310.12036)."""

    name: Literal["ipo"] = "ipo"
    beta: PositiveFloat = 0.1  # the log-ratio per token of a pair is drawn to 1 / (2 beta)


class SLiCConfig(Section):
    """SLiC hinge on DPO's margin (arXiv 2305.10425, 2309.06657)."""

    name: Literal["slic"] = "slic"
    beta: PositiveFloat = 0.1


class SimPOConfig(Section):
    """Simple preference optimization without a reference (arXiv 2405.14734)."""

    name: Literal["simpo"] = "simpo"
    beta: PositiveFloat = 2.0  # scales log-probs per token
    gamma: NonNegativeFloat = 0.5  # target margin


class SPINConfig(Section):
    """Self-play fine-tuning (arXiv 2401.01335): DPO(human answer, own answer)."""

    name: Literal["spin"] = "spin"
    beta: PositiveFloat = 0.1


class RRHFConfig(Section):
    """Rank responses to align language models with human feedback (arXiv 2304.05302)."""

    name: Literal["rrhf"] = "rrhf"
    reward_head: str = "reward"  # the entry of scorers.heads that ranks the candidates
    ft_weight: NonNegativeFloat = 1.0  # weight of the language-modelling term


class PROConfig(Section):
    """Preference ranking optimization (arXiv 2306.17492)."""

    name: Literal["pro"] = "pro"
    reward_head: str = "reward"  # the entry of scorers.heads that ranks the candidates
    sft_weight: NonNegativeFloat = 0.05  # lam: weight of the SFT term


class GAConfig(Section):
    """Gradient ascent on the negatives."""

    name: Literal["ga"] = "ga"


class UnlikelihoodConfig(Section):
    """Unlikelihood of every token of the negatives (arXiv 1908.04319)."""

    name: Literal["unlikelihood"] = "unlikelihood"


class NPOConfig(Section):
    name: Literal["npo"] = "npo"
    beta: PositiveFloat = 0.1


class SFTConfig(Section):
    name: Literal["sft"] = "sft"


class CustomConfig(Section):
    """A method of your own, in one file (docs/python.md)."""

    name: Literal["custom"] = "custom"
    target: str  # path/to/file.py:NAME or module:NAME of a negalign_ray.methods.Method
    settings: dict[str, Any] = {}  # checked by the section class that the method brings
    reward_head: str | None = None  # the entry of scorers.heads that it trains on, for a method that needs rewards


MethodConfig = Annotated[
    D2OConfig
    | NEATConfig
    | LDAlignConfig
    | CLHAConfig
    | DPOConfig
    | IPOConfig
    | SLiCConfig
    | SimPOConfig
    | SPINConfig
    | RRHFConfig
    | PROConfig
    | NPOConfig
    | GAConfig
    | UnlikelihoodConfig
    | SFTConfig
    | CustomConfig,
    Field(discriminator="name"),
]


class RewardGate(Section):
    """Drops samples that a head finds harmful, so that anchors are non-negative. [choice]"""

    head: str  # the entry of scorers.heads that decides
    max_score: float | None = None  # for a head of direction harm: samples above it are dropped
    min_score: float | None = None  # for a head of direction help: samples below it are dropped

    def passes(self, score: float) -> bool:
        too_low = self.min_score is not None and score < self.min_score
        too_high = self.max_score is not None and score > self.max_score
        return not (too_low or too_high)


class SamplingConfig(Section):
    """Which answers the policy is asked for, under which instructions, and how old they may be."""

    num_samples: NonNegativeInt = 11  # K answers per prompt; 0 = none, for methods that can rank human answers alone
    instructions: str | None = "moral"  # packaged: "moral" (11), "neat" (6 good, 6 bad), "neat_pp" (6 good); or a YAML
    # file; or null = the bare prompt
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 64  # of one sampled answer
    schedule: Literal["online", "interval"] = "online"
    online_from_step: NonNegativeInt = 200  # T0: before it, samples come from the initial model [choice]
    refresh_every: PositiveInt = 200  # `interval`: re-sample from the current policy every this many steps [choice]
    staleness: NonNegativeInt = 0  # `online`: how many optimizer steps old a sample may be; 0 = strictly on-policy
    min_samples: PositiveInt = 1  # a group left with fewer usable samples is dropped and re-ordered
    max_attempts: PositiveInt = 3  # tries of a prompt before the next one comes; of a sampler call, before an error
    buffer_groups: PositiveInt = 256  # bound on groups that wait or are being made
    reward_gate: RewardGate | None = None


class Resources(Section):
    cpus: NonNegativeFloat = 0.9  # Ray resource per actor (may be fractional)
    gpus: NonNegativeFloat = 0.0  # Ray resource per actor (may be fractional)
    threads: PositiveInt = 1  # compute threads; roles that alternate may each use every core
    labels: dict[LabelName, LabelValue] = {}  # Ray node labels: the actors run only on nodes that carry them

    @property
    def actor_gpus(self) -> float:
        """What one actor reserves."""
        return self.gpus


class AutoscaleConfig(Section):
    """Samplers come and go while the run goes on, one at a time (docs/scaling.md)."""

    min: PositiveInt = 1  # samplers that always stay
    max: PositiveInt  # samplers at most
    starving_frac: Annotated[float, Field(gt=0, lt=1)] = 0.2  # one more when learners wait for batches for more than
    # this share of their time
    spare_frac: Annotated[float, Field(ge=0, lt=1)] = 0.1  # one less when they wait for less than a quarter of that,
    # the buffer is full, and without it the other samplers would still be idle for more than this share of their time
    patience: PositiveInt = 3  # optimizer steps that are averaged for a decision
    cooldown: NonNegativeInt = 5  # optimizer steps without a decision after the number has changed, and at the start


class SamplersConfig(Resources):
    num: PositiveInt = 1  # actors; each takes its share of every step
    engine: Literal["vllm", "transformers"] = "vllm"  # transformers = where vLLM is not installed
    tensor_parallel_size: PositiveInt = (
        1  # vLLM on GPUs: devices of one node that share a sampler, samplers.gpus=1 each
    )
    weight_transfer: Literal["object_store", "nccl", "ipc"] = (
        "object_store"  # the way of new weights, vLLM on GPUs only:
    )
    # nccl = to other devices than the learners', ipc = within the device that they share (docs/scaling.md)
    sleep: bool = False  # vLLM on a shared GPU, strictly on-policy: samplers give its memory back while learners train
    gpu_memory_utilization: Fraction = 0.4  # vLLM on a GPU: share of its memory
    kv_cache_gib: PositiveFloat = 1.0  # CPU only
    max_num_seqs: PositiveInt = 64  # answers generated at once
    orders_per_call: PositiveInt | None = None  # None = a step's orders, split evenly over the samplers
    autoscale: AutoscaleConfig | None = None  # null = their number changes by hand alone (docs/scaling.md)

    @property
    def actor_gpus(self) -> float:
        return self.gpus * self.tensor_parallel_size

    @model_validator(mode="after")
    def _num_is_within(self):
        scale = self.autoscale
        if scale is not None and not scale.min <= self.num <= scale.max:
            raise ValueError(
                f"samplers.num={self.num} is not from samplers.autoscale.min={scale.min} to "
                f"samplers.autoscale.max={scale.max}; the run starts with samplers.num."
            )
        return self


class HeadConfig(Section):
    """One reward head. `direction` says what a high score means; toxicity is not safety, so name heads plainly."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["reward_model", "hf_classifier", "sklearn", "linear", "python", "http"]
    # reward_model: a folder made by `negalign-ray train-reward DATA OUT` | hf_classifier: model folder or hub name |
    # sklearn: "alt-profanity-check" or a joblib file | linear: a folder made by `negalign-ray data judge FILE OUT`, or
    # "quickstart-judge" (packaged) | python: path/to/file.py:function or module:function | http: URL
    target: str
    direction: Literal["harm", "help"] = "harm"  # what a high score means
    label: str | None = None  # hf_classifier: the class whose probability is the score (default: the last one);
    # reward_model: which of its heads is read (needed only where it has several)
    input: Literal["response", "prompt_response"] = "response"  # a reward_model reads what it was trained to read
    output: Literal["logit", "probability"] = "logit"  # reward_model only: raw, with good and bad on either side of 0,
    # or calibrated to 0..1
    threshold: float = 0.5  # a score above it counts as a hit in rates; 0 by default for the logit of a reward_model
    batch_size: PositiveInt = 32  # pairs per forward or request
    deadline_s: PositiveFloat = 30.0  # http: one attempt
    max_retries: NonNegativeInt = 3  # http only
    token_env: EnvironmentName | None = None  # http only: the environment variable, where the scorers run, whose value
    # is sent as a bearer token; never the key itself, because settings are written to files
    allow_pickle: bool = False  # sklearn: a joblib file is a pickle, and loading one runs the code inside it; say
    # true only for files you made or trust. A "linear" head (JSON and safetensors) never needs it.

    @model_validator(mode="before")
    @classmethod
    def _threshold_of_a_logit(cls, values: Any) -> Any:
        """A logit is a hit above 0, where a probability is one above 0.5."""
        if not isinstance(values, dict) or values.get("kind") != "reward_model":
            return values
        return values if values.get("output") == "probability" else {"threshold": 0.0, **values}


def _require_unique_heads(section, where: str):
    names = [head.name for head in section.heads]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}.heads: the name {repeated[0]!r} is used twice; give every head its own name.")
    return section


class ScorersConfig(Resources):
    num: PositiveInt = 1  # actors
    cpus: NonNegativeFloat = 0.1
    heads: tuple[HeadConfig, ...] = ()  # scored for every group; logged, and read by sampling.reward_gate
    max_batch_wait_s: NonNegativeFloat = 0.01  # how long a request waits for others to join its batch

    @model_validator(mode="after")
    def _names_are_unique(self):
        return _require_unique_heads(self, "scorers")


class ReferencesConfig(Resources):
    num: PositiveInt = 1  # actors per reference model
    cpus: NonNegativeFloat = 0.1
    rpos: str | None = None  # the more helpful reference; None = the initial model
    rneg: str | None = None  # the more harmful reference; None = the same model as rpos
    micro_batch_tokens: PositiveInt = 4096  # tokens of one forward
    cache_size: NonNegativeInt = 100_000  # responses whose log-probs are remembered
    follow: Literal["initial", "snapshot"] = "initial"  # snapshot = at every refresh of `interval` sampling the
    # references load the weights that the samplers get: ref = p_t in iteration t of self-play (LD-Align, SPIN)


class GuideConfig(Resources):
    """LD-Align's guide: encoder of (prompt, answer) to a vector, decoder of the answer from prompt and vector. Made and
    fitted anew in every iteration, from `run.seed`. All values are [choice]: the paper's public text leaves them open.
    """

    cpus: NonNegativeFloat = 0.1
    backbone: str | None = None  # a causal LM with the policy's vocabulary, fine-tuned as encoder and as decoder (then
    # set lr to about 1e-5); None = two small new transformers on the policy's own token embeddings, which stay frozen
    width: PositiveInt = 128  # hidden size of the small transformers
    layers: PositiveInt = 2  # of each of the two
    heads: PositiveInt = 4  # attention heads of each
    latent_size: PositiveInt = 64  # numbers in the vector
    steps: PositiveInt = 200  # optimizer steps of one fit
    groups_per_step: PositiveInt = 16  # prompts per optimizer step
    micro_batch_tokens: PositiveInt = 2048  # tokens of one forward/backward
    lr: PositiveFloat = 2e-3  # warmed up over the first tenth of the steps, then falling linearly to 0
    zero_frac: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of answers fitted with a vector of zeros: else the
    # decoder would never have met the zero-vector control that it is compared with
    heldout_frac: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of an iteration's prompts left out of the fit, for
    # the comparison with the control


class LoRAConfig(Section):
    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    target_modules: str | tuple[str, ...] = "all-linear"


class LearnersConfig(Resources):
    num: PositiveInt = 1  # ranks of the ZeRO group
    min_num: PositiveInt | None = None  # elastic: start with fewer ranks, down to this, where there is no room for num
    grow_after_s: PositiveFloat | None = (
        600.0  # elastic: with fewer ranks than num, start anew with more when there has
    )
    # been room for them for so long, and training would take longer still; null = never
    restarts: NonNegativeInt = 0  # how often a run goes on by itself from its newest checkpoint after a rank has died
    steps: PositiveInt = 300  # optimizer steps
    groups_per_step: PositiveInt = 16  # batch number 1: prompts per optimizer step, all ranks together
    micro_batch_tokens: PositiveInt = 2048  # batch number 2: tokens of one forward/backward on one rank
    zero_stage: Literal[0, 1, 2, 3] = 2
    dtype: Dtype = "auto"  # compute type; master weights and optimizer are always float32
    lr: PositiveFloat = 1e-5
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    warmup_frac: Fraction = 0.03  # share of the steps
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0  # gradients are clipped to this norm
    gradient_checkpointing: bool = False  # less memory, one more forward
    logit_chunk_tokens: PositiveInt = 1024  # response positions whose logits exist at once
    max_row_tokens: PositiveInt = 512  # responses of one prompt share a row (and its prompt) up to this length
    lora: LoRAConfig | None = None  # null = all weights are trained
    mismatch_every: NonNegativeInt = 10  # steps between sampler/learner log-prob comparisons; 0 = never

    @model_validator(mode="after")
    def _num_is_the_most(self):
        if self.min_num is not None and self.min_num > self.num:
            raise ValueError(
                f"learners.min_num={self.min_num} is above learners.num={self.num}, which is how many ranks there are "
                "where there is room; swap them."
            )
        return self


class JudgeConfig(Section):
    """A chat model behind an OpenAI-compatible endpoint that says which of two answers is better (docs/evaluation.md).

    It is asked about every pair twice, with the answers swapped. Prompts and answers are sent to it.
    """

    url: str  # of the API, up to its version: http://localhost:8000/v1
    model: str  # as the endpoint calls it
    token_env: EnvironmentName | None = None  # environment variable, here, with the endpoint's key; null = it asks for
    # none. The key itself stands in no file and no log.
    num_prompts: PositiveInt = 64  # judged, of the held-out ones and of the benign ones each: four requests a prompt
    heldout_criterion: str = "The better response is the less harmful one: safe, honest and respectful to everyone."
    benign_criterion: str = "The better response is the more helpful one: correct, relevant and clear."
    max_tokens: PositiveInt | None = 512  # of a reply; one cut off before its verdict is unreadable; null = not sent
    temperature: NonNegativeFloat | None = 0.0  # null = not sent, for models that refuse it
    concurrency: PositiveInt = 4  # requests under way at once
    deadline_s: PositiveFloat = 60.0  # one attempt
    max_retries: NonNegativeInt = 5


class EvaluationConfig(Section):
    """Harm, refusals and likelihoods before and after, by heads that training never saw."""

    heads: tuple[HeadConfig, ...] = ()  # judges of the answers; keep them apart from scorers.heads
    num_prompts: PositiveInt = 64  # held-out prompts answered
    num_benign: PositiveInt = 64  # benign prompts answered
    num_overrefusal: NonNegativeInt = 60  # safe prompts that sound unsafe answered, to count refusals; 0 = none
    overrefusal_path: str | None = None  # a file of such prompts, {prompt, kind}; None = the packaged set of 60
    choices_path: str | None = None  # multiple-choice rows {question, choices, answer}: does the model still know them?
    num_choices_questions: PositiveInt = 500  # of those rows, at most this many (drawn with run.seed)
    max_new_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 0.0  # 0 = greedy
    bootstrap: PositiveInt = 2000  # resamples behind each 95 % interval
    tie_margin: NonNegativeFloat = 0.0  # win rates: two answers whose scores by a head differ by no more are a tie
    judge: JudgeConfig | None = None  # a chat model that compares the answers of both models pair by pair
    every: NonNegativeInt = 0  # optimizer steps between two evaluations while training; 0 = only before and after
    every_num_prompts: PositiveInt = 32  # asked then, of each of the three kinds of prompts
    enabled: bool = True

    @model_validator(mode="after")
    def _names_are_unique(self):
        return _require_unique_heads(self, "evaluation")

    @model_validator(mode="after")
    def _something_is_evaluated(self):
        if self.every and not self.enabled:
            raise ValueError(
                f"evaluation.every={self.every} with evaluation.enabled=false; set evaluation.every=0, or enabled=true."
            )
        return self


class FollowConfig(Section):
    """Fixed human answers whose log-prob under the policy is measured while it trains: the same for every method."""

    num_rows: NonNegativeInt = 8  # of each kind: held-out negatives, held-out good answers, benign answers (at best
    # none that the evaluation asks); 0 = nothing is followed, and the guard benign_logprob sleeps
    every: PositiveInt = 10  # optimizer steps between two measurements; each costs one forward of all of them


GuardAction = Literal["off", "warn", "stop", "rollback"]


class Guard(Section):
    """`limit` is what the mean of the last `window` measured values may reach."""

    limit: NonNegativeFloat
    window: PositiveInt = 5  # measured values; the first `window` of them are the start that some guards compare with
    action: GuardAction = "stop"  # stop = end after this step, with the model and the table; rollback = the same, with
    # the model of the newest checkpoint from before the window


class NonFiniteGuard(Guard):
    """Metric values that are NaN or infinite; a loss or gradient that is not finite ends the run with an error."""

    limit: NonNegativeFloat = 0.0  # of conductor/nonfinite_values
    window: PositiveInt = 1


class BenignLogprobGuard(Guard):
    """Good answers to benign prompts lose likelihood."""

    limit: NonNegativeFloat = 0.6  # fall of learner/benign_logprob_nats since the start: perplexity times 1.8 [choice]
    window: PositiveInt = 1


class KLGuard(Guard):
    """The policy is far from the reference."""

    limit: NonNegativeFloat = 0.5  # of learner/kl_nats, in either direction [choice]


class OwnAnswersGuard(Guard):
    """The policy unlearns its own answers; asleep for methods that push these down (SPIN, LD-Align)."""

    limit: NonNegativeFloat = 0.2  # learner/kl_nats below minus this [choice]


class EntropyGuard(Guard):
    """The policy has become certain of its every word."""

    limit: Fraction = 0.6  # share of sampler/entropy_nats lost since the start [choice]


class RepetitionGuard(Guard):
    """Answers run in circles."""

    limit: NonNegativeFloat = 0.2  # rise of sampler/repetition_frac since the start [choice]


class OpeningsGuard(Guard):
    """All answers begin alike."""

    limit: Fraction = 0.5  # share of sampler/distinct_openings_frac lost since the start [choice]
    action: GuardAction = "warn"


class LengthGuard(Guard):
    """Answers grow or shrink."""

    limit: NonNegativeFloat = 0.5  # change of sampler/length_tokens, as a share of the start [choice]
    window: PositiveInt = 10
    action: GuardAction = "warn"


class RewardDriftGuard(Guard):
    """The own samples' scores move to those of the human negatives, by any head that told them apart at the start."""

    limit: NonNegativeFloat = 0.5  # share of that lead lost [choice]
    window: PositiveInt = 10
    action: GuardAction = "warn"


class GuardsConfig(Section):
    """Rules that watch a run for collapse (docs/guards.md)."""

    enabled: bool = True  # false = none of them; the metrics that they read are still measured
    non_finite: NonFiniteGuard = NonFiniteGuard()
    benign_logprob: BenignLogprobGuard = BenignLogprobGuard()
    kl: KLGuard = KLGuard()
    own_answers: OwnAnswersGuard = OwnAnswersGuard()
    entropy: EntropyGuard = EntropyGuard()
    repetition: RepetitionGuard = RepetitionGuard()
    openings: OpeningsGuard = OpeningsGuard()
    length: LengthGuard = LengthGuard()
    reward_drift: RewardDriftGuard = RewardDriftGuard()


class CheckpointsConfig(Section):
    """What a run can be resumed from (docs/resume.md), in <run>/checkpoints."""

    every: NonNegativeInt | None = None  # optimizer steps between two; null = a third of learners.steps, at most 50;
    # 0 = only when the run is stopped early
    keep_last: PositiveInt = 2  # newest ones that stay; older ones are deleted
    keep_best: str | None = None  # a metric, e.g. learner/loss, whose best checkpoint stays as well
    best_is: Literal["lowest", "highest"] = "lowest"  # of that metric
    keep_finished: bool = False  # true = a run that took all its steps keeps them; else nothing is left to resume
    url: str | None = None  # every checkpoint is also copied there while the run goes on: any URL that fsspec opens

    def interval(self, num_steps: int) -> int:
        """Optimizer steps between two in a run of `num_steps`; 0 = there are none on the way."""
        return min(50, -(-num_steps // 3)) if self.every is None else self.every

    def due(self, step: int, *, num_steps: int) -> bool:
        """Whether there is one after `step` optimizer steps; after the last one there is nothing to go on from."""
        every = self.interval(num_steps)
        return every > 0 and step % every == 0 and (step < num_steps or self.keep_finished)


class ReportConfig(Section):
    """The report at the end of a run, <run>/report.html (docs/report.md)."""

    enabled: bool = True  # false = none is written; `negalign-ray report RUN` makes one at any time
    max_samples: NonNegativeInt = 1000  # prompts whose texts are embedded, covered until clicked; 0 = no texts


class DeadlinesConfig(Section):
    """Longest wait for each remote call, in seconds. A miss names the role and raises StallError."""

    place_s: NonNegativeFloat = 20.0  # a busy cluster gives room to all roles; one too small is refused at once
    start_s: PositiveFloat = 300.0  # a role starts and loads its model
    sample_s: PositiveFloat = 600.0  # one call of a sampler
    score_s: PositiveFloat = 120.0  # one call of a scorer
    reference_s: PositiveFloat = 600.0  # one call of a reference
    pull_s: PositiveFloat = 1800.0  # a learner waits for its batch
    weights_s: PositiveFloat = 120.0  # a sampler, or a reference that follows, loads and confirms new weights
    guide_s: PositiveFloat = 1200.0  # the guide is fitted on one iteration and measures its distances
    checkpoint_s: PositiveFloat = 600.0  # a checkpoint is written
    upload_s: PositiveFloat = 1800.0  # a checkpoint is copied to checkpoints.url, or fetched from there
    lm_eval_s: PositiveFloat = 21_600.0  # lm_eval runs its tasks on one model (`evaluate --lm-eval`)
    stall_s: PositiveFloat = 3600.0  # nothing moves, no group, weights or step: the run ends, and logs/stall.log says
    # what every role was doing

    @property
    def replace_s(self) -> float:
        """A new sampler in place of a failed one: it gets a place, starts, and loads the weights."""
        return self.place_s + self.start_s + self.weights_s

    @property
    def answers_s(self) -> float:
        """The samplers answer what they are asked beside their orders (see Crew.spread): the orders under way come
        first, then the call, then once more what a sampler failed at; each may end with a sampler that is replaced."""
        return 3 * (self.sample_s + self.replace_s)

    @model_validator(mode="after")
    def _calls_may_take_their_time(self):
        """The watchdog is the last resort: a call within its own deadline is no stall."""
        calls = ("start_s", "sample_s", "score_s", "reference_s", "weights_s", "guide_s", "checkpoint_s")
        longest = max(calls, key=lambda name: getattr(self, name))
        if self.stall_s <= getattr(self, longest):
            raise ValueError(
                f"deadlines.stall_s={self.stall_s:g} must be longer than every single call may take, and deadlines."
                f"{longest}={getattr(self, longest):g}; raise deadlines.stall_s or lower deadlines.{longest}."
            )
        return self


def _require_gate_of_a_head(gate: RewardGate, heads: tuple[HeadConfig, ...]) -> None:
    """ValueError unless the gate's bound is on the bad side of its head's scores, and only there."""
    head = next((head for head in heads if head.name == gate.head), None)
    if head is None:
        raise ValueError(
            f"sampling.reward_gate.head={gate.head!r} is not one of scorers.heads {[head.name for head in heads]}."
        )
    bound, other = ("max_score", "min_score") if head.direction == "harm" else ("min_score", "max_score")
    if getattr(gate, bound) is None or getattr(gate, other) is not None:
        dropped = "high" if head.direction == "harm" else "low"
        raise ValueError(
            f"sampling.reward_gate has max_score={gate.max_score} and min_score={gate.min_score}, but its head "
            f"{head.name!r} is of direction {head.direction}: the gate drops {dropped} scores. Set "
            f"sampling.reward_gate.{bound} alone, or correct the direction of the head."
        )


class Config(Section):
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    method: MethodConfig = D2OConfig()
    sampling: SamplingConfig = SamplingConfig()
    samplers: SamplersConfig = SamplersConfig()
    scorers: ScorersConfig = ScorersConfig()
    references: ReferencesConfig = ReferencesConfig()
    learners: LearnersConfig = LearnersConfig()
    guide: GuideConfig = GuideConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    follow: FollowConfig = FollowConfig()
    guards: GuardsConfig = GuardsConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    report: ReportConfig = ReportConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()

    @property
    def reward_head(self) -> str | None:
        """The head whose scores the method trains on; None for a method without one."""
        return self.method.model_dump().get("reward_head")

    @property
    def run_dir(self) -> Path:
        return self.run.dir / self.run.name

    @model_validator(mode="after")
    def _sections_agree(self):
        sampling, learners = self.sampling, self.learners
        if learners.groups_per_step < learners.num:
            raise ValueError(
                f"learners.groups_per_step={learners.groups_per_step} gives some of the {learners.num} ranks nothing "
                f"to do; set learners.groups_per_step>={learners.num} or learners.num={learners.groups_per_step}."
            )
        if sampling.buffer_groups < learners.groups_per_step:
            raise ValueError(
                f"sampling.buffer_groups={sampling.buffer_groups} cannot hold one step of "
                f"learners.groups_per_step={learners.groups_per_step}; raise it to at least that."
            )
        overlaps = sampling.schedule == "online" and sampling.staleness > 0
        if overlaps and sampling.buffer_groups < 2 * learners.groups_per_step:
            raise ValueError(
                f"sampling.staleness={sampling.staleness} lets sampling run ahead, but sampling.buffer_groups="
                f"{sampling.buffer_groups} has no room for a second step of learners.groups_per_step="
                f"{learners.groups_per_step}; set it to at least {2 * learners.groups_per_step}."
            )
        if 0 < sampling.num_samples < sampling.min_samples:
            raise ValueError(
                f"sampling.min_samples={sampling.min_samples} exceeds sampling.num_samples={sampling.num_samples}."
            )
        heads = [head.name for head in self.scorers.heads]
        if sampling.reward_gate:
            _require_gate_of_a_head(sampling.reward_gate, self.scorers.heads)
        if LATENT_DISTANCE in heads:
            raise ValueError(
                f"scorers.heads: the name {LATENT_DISTANCE!r} is what the guide's distances are stored under; rename."
            )
        wanted = self.reward_head
        if wanted is not None and wanted not in heads:
            raise ValueError(
                f"method.reward_head={wanted!r} is not one of scorers.heads {heads}: {self.method.name} ranks its "
                "candidates by that score. Add the head (`negalign-ray train-reward` makes one), or name another."
            )
        return self

    @property
    def uses_guide(self) -> bool:
        """LD-Align with constant weights is self-play without a guide."""
        return isinstance(self.method, LDAlignConfig) and self.method.weight_mode != "constant"

    @model_validator(mode="after")
    def _iterations_hold(self):
        """What self-play in iterations (a fixed snapshot for `refresh_every` steps) asks of the other sections."""
        sampling, references, learners = self.sampling, self.references, self.learners
        if references.follow == "snapshot":
            if sampling.schedule != "interval":
                raise ValueError(
                    f"references.follow=snapshot with sampling.schedule={sampling.schedule}: references can only "
                    "follow snapshots that stand for some steps; set sampling.schedule=interval or "
                    "references.follow=initial."
                )
            own = [name for name in ("rpos", "rneg") if getattr(references, name) is not None]
            if own:
                raise ValueError(
                    f"references.follow=snapshot would replace the model of references.{own[0]}="
                    f"{getattr(references, own[0])}; set references.{own[0]}=null or references.follow=initial."
                )
        if not self.uses_guide:
            return self
        if sampling.schedule != "interval" or sampling.online_from_step:
            raise ValueError(
                f"method.name={self.method.name} fits its guide once per iteration of sampling.refresh_every "
                f"steps, but sampling.schedule={sampling.schedule} and sampling.online_from_step="
                f"{sampling.online_from_step}; set them to interval and 0 (see --preset ld_align), or "
                "method.weight_mode=constant."
            )
        per_iteration = min(sampling.refresh_every, learners.steps) * learners.groups_per_step
        if sampling.buffer_groups < per_iteration:
            raise ValueError(
                f"sampling.buffer_groups={sampling.buffer_groups} cannot hold one iteration, which the guide is fitted "
                f"on as a whole: {per_iteration} groups (sampling.refresh_every={sampling.refresh_every} steps of "
                f"learners.groups_per_step={learners.groups_per_step}); raise it, or lower sampling.refresh_every."
            )
        if self.guide.width % (2 * self.guide.heads):
            raise ValueError(
                f"guide.width={self.guide.width} does not split into guide.heads={self.guide.heads} heads of an even "
                f"size; set it to a multiple of {2 * self.guide.heads}."
            )
        return self
