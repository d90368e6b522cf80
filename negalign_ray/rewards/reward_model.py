"""A reward head that is one head of a model made by `negalign-ray train-reward`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from negalign_ray.rewards.pair_input import PairEncoder
from negalign_ray.rewards.protocol import Pair, checked_scores, score_error
from negalign_ray.rewards.reward_card import read_card
from negalign_ray.rewards.reward_network import RewardNetwork, load_reward_model

# Axes: B = pairs in a batch, C = heads.


@dataclass(frozen=True)
class RewardModelHead:
    """The raw logit of one head, whose zero lies between good and bad, or sigmoid(logit / T): a calibrated probability
    for a classification head, whose T was fitted on single answers (a pairwise one's was on differences of two)."""

    name: str
    network: RewardNetwork
    encoder: PairEncoder
    column: int
    temperature: float
    output: Literal["logit", "probability"]
    batch_size: int
    device: str

    @classmethod
    def load(
        cls,
        name: str,
        target: str,
        *,
        label: str | None = None,
        output: Literal["logit", "probability"] = "logit",
        batch_size: int = 32,
        device: str = "cpu",
    ) -> "RewardModelHead":
        """`label` names the head; needed where the model has several. Raises ConfigError or ModelError."""
        card = read_card(target, head=name)
        column = card.column(label, head=name)
        network, encoder = load_reward_model(Path(target).expanduser(), card)
        return cls(
            name=name,
            network=network.to(device),
            encoder=encoder,
            column=column,
            temperature=card.heads[column].temperature,
            output=output,
            batch_size=batch_size,
            device=device,
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Batched by length, so that little padding is computed."""
        rows = self.encoder.encode(pairs)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            try:
                with torch.inference_mode():
                    rewards_BC = self.network(self.encoder.batch([rows[row] for row in chosen], device=self.device))
            except (RuntimeError, IndexError, ValueError) as error:
                raise score_error(self.name, f"the model failed: {type(error).__name__}: {error}") from error
            logits_B = rewards_BC[:, self.column]
            if self.output == "probability":
                logits_B = (logits_B / self.temperature).sigmoid()
            for row, score in zip(chosen, logits_B.tolist(), strict=True):
                scores[row] = score
        return checked_scores(self.name, scores, expected=len(pairs))
