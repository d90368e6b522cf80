"""The plain records that travel between the roles. No torch, no Ray: they pickle small and print readably.

Prompt --(conductor)--> Order --(sampler)--> Group --(scorer)--> Group --(reference)--> Group --(learner)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

TokenIds = tuple[int, ...]
OPENING_TOKENS = 3


class Record:
    """Pickles as a call with its fields: half of the time that dataclasses with slots take by themselves. A conductor
    sends and receives some of these for every group."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()  # the names of the fields; dataclasses fill it in

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple([getattr(self, name) for name in self.__match_args__])


class Role(StrEnum):
    """Where a response comes from. Methods pick what they need by role."""

    NEGATIVE = "negative"  # human-annotated: the model must not say this
    POSITIVE = "positive"  # human-annotated: a good answer
    SAMPLE = "sample"  # written by the policy itself


class Polarity(StrEnum):
    """What an instruction to sample under asks for: a good answer, or (NEAT) a bad one."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


@dataclass(frozen=True, slots=True)
class Response(Record):
    """One answer y to a prompt x.

    `token_ids` holds the response tokens only, end-of-turn token included when the answer ended by itself.
    `sampler_logprobs` are natural logs per token under the *sampling* prompt `context_ids` at temperature 1
    (None for human text). `ref_logprobs` maps "rpos" / "rneg" to the summed log-prob under the *bare* prompt.
    """

    role: Role
    token_ids: TokenIds
    text: str
    instruction: str | None = None  # id of the instruction it was sampled under; None = bare prompt or human text
    polarity: Polarity | None = None  # of that instruction; None = it has none
    carried: bool = False  # from an earlier order of the prompt, kept in its candidate list (NEAT)
    context_ids: TokenIds | None = None  # prompt tokens it was sampled under
    weight_version: int | None = None  # learner version that wrote it; None for human text
    finish_reason: str | None = None  # "stop" | "length"; None for human text
    sampler_logprobs: tuple[float, ...] | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)  # head name -> raw score
    ref_logprobs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """One prompt x with its human responses, tokenised under the model's chat template without any instruction."""

    prompt_id: int
    text: str  # last user turn (the whole conversation when there are several turns)
    messages: tuple[tuple[str, str], ...]  # (role, content) pairs as given to the chat template
    token_ids: TokenIds
    responses: tuple[Response, ...]  # roles NEGATIVE and POSITIVE
    behaviour: str | None = None


@dataclass(frozen=True, slots=True)
class SampleRequest(Record):
    """One answer wanted: the tokens to continue and the seed to draw with."""

    context_ids: TokenIds
    seed: int
    instruction: str | None = None
    polarity: Polarity | None = None


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How to sample; one spec serves a whole call."""

    max_new_tokens: int
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Generation(Record):
    """What an engine returns for one request: token ids (end-of-turn included when finished by it) and log-probs."""

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    finish_reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Order(Record):
    """One prompt and the answers wanted for it. Every order ends exactly once: trained, dropped or failed."""

    order_id: int
    prompt: Prompt
    requests: tuple[SampleRequest, ...]
    attempt: int = 0  # how often the prompt was tried before without a usable group
    earlier: Any = None  # handle of the group whose own answers fill up the new one (methods that keep candidates)


@dataclass(frozen=True, slots=True)
class Group(Record):
    """One prompt with all its responses: what the learner trains on."""

    order_id: int
    prompt: Prompt
    responses: tuple[Response, ...]

    @property
    def weight_version(self) -> int | None:
        """Oldest version that wrote a fresh sample, None when there is none; carried ones are old on purpose."""
        return min((r.weight_version for r in self.fresh_samples if r.weight_version is not None), default=None)

    @property
    def num_tokens(self) -> int:
        """Tokens a learner computes for this group: the prompt once, each response once."""
        return len(self.prompt.token_ids) + sum(len(r.token_ids) for r in self.responses)

    @property
    def samples(self) -> tuple[Response, ...]:
        return tuple(r for r in self.responses if r.role is Role.SAMPLE)

    @property
    def fresh_samples(self) -> tuple[Response, ...]:
        return tuple(r for r in self.samples if not r.carried)

    def card(self) -> "GroupCard":
        return GroupCard(
            order_id=self.order_id,
            weight_version=self.weight_version,
            num_tokens=self.num_tokens,
            responses=tuple(ResponseCard.of(response) for response in self.responses),
            prompt_id=self.prompt.prompt_id,
        )


@dataclass(frozen=True, slots=True)
class ResponseCard(Record):
    """What is known of a response without its text and tokens."""

    role: Role
    num_tokens: int
    polarity: Polarity | None = None
    carried: bool = False
    stopped: bool = False  # a sample that ended by itself
    rewards: Mapping[str, float] = field(default_factory=dict)
    opening: TokenIds = ()  # first tokens of a sample: do all answers begin alike?

    @classmethod
    def of(cls, response: Response) -> "ResponseCard":
        return cls(
            role=response.role,
            num_tokens=len(response.token_ids),
            polarity=response.polarity,
            carried=response.carried,
            stopped=response.finish_reason == "stop",
            rewards=response.rewards,
            opening=response.token_ids[:OPENING_TOKENS] if response.role is Role.SAMPLE else (),
        )

    @property
    def origin(self) -> str:
        """negative, positive or sample; sample_positive or sample_negative under an instruction with a polarity."""
        return f"{self.role}_{self.polarity}" if self.polarity else str(self.role)


@dataclass(frozen=True, slots=True)
class GroupCard(Record):
    """What the conductor, and every rank, knows of a group whose payload stays in the object store."""

    order_id: int
    weight_version: int | None
    num_tokens: int
    responses: tuple[ResponseCard, ...]
    prompt_id: int

    @property
    def fresh_samples(self) -> tuple[ResponseCard, ...]:
        return tuple(card for card in self.responses if card.role is Role.SAMPLE and not card.carried)

    @property
    def num_samples(self) -> int:
        """Fresh ones: what the group's own order brought."""
        return len(self.fresh_samples)

    @property
    def rewards(self) -> dict[tuple[str, str], float]:
        """(head, origin) -> mean over the group's responses of that origin, carried ones (older policies') left out."""
        scores: dict[tuple[str, str], list[float]] = {}
        for card in self.responses:
            if card.carried:
                continue
            for head, score in card.rewards.items():
                scores.setdefault((head, card.origin), []).append(score)
        return {key: sum(values) / len(values) for key, values in scores.items()}


@dataclass(frozen=True, slots=True)
class WeightReceipt(Record):
    """A sampler's confirmation, computed from its own loaded weights."""

    rank: int
    version: int
    checksum: int
    seconds: float
    num_bytes: int
