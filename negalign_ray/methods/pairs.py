"""Winner and loser pairs within a group: what the pairwise methods (DPO, IPO, SLiC, SimPO, SPIN) share.

# Axes: G = groups (prompts), R = responses per group, padded; W = R as the winner, L = R as the loser of a pair,
#       P = W * L.
"""

from dataclasses import dataclass

from torch import Tensor

from negalign_ray.methods.groups import GroupTensors, metric_mean


@dataclass(frozen=True)
class Pairs:
    """Every winner of a group beside every loser of it."""

    winner_GR: Tensor  # bool: in at least one pair
    loser_GR: Tensor  # bool: in at least one pair
    mask_GP: Tensor  # bool

    @classmethod
    def of(cls, winner_GR: Tensor, loser_GR: Tensor) -> "Pairs":
        pair_GWL = winner_GR.unsqueeze(-1) & loser_GR.unsqueeze(-2)
        return cls(pair_GWL.any(-1), pair_GWL.any(-2), pair_GWL.flatten(-2))

    @classmethod
    def human(cls, groups: GroupTensors) -> "Pairs":
        """Human positives over human negatives."""
        return cls.of(groups.is_positive_GR, groups.is_negative_GR)

    @property
    def member_GR(self) -> Tensor:
        return self.winner_GR | self.loser_GR

    def margin(self, values_GR: Tensor) -> Tensor:
        """The winner's value minus the loser's -> [G, P]; the values of responses in no pair are not to be NaN."""
        return (values_GR.unsqueeze(-1) - values_GR.unsqueeze(-2)).flatten(-2)

    def share(self, hits_GP: Tensor) -> Tensor:
        """Share of the pairs that are hits -> [G]; NaN where there are none."""
        return metric_mean(hits_GP.float(), self.mask_GP)


def ratio_metrics(ratio_GR: Tensor, pairs: Pairs, groups: GroupTensors, *, beta: float) -> dict[str, Tensor]:
    """What every pairwise method with a reference reports of its summed log-ratios [G, R].

    `positive_nats` and `negative_nats` speak of the winners and the losers, times `beta`; the log-ratios, without it,
    speak of the human positives, the human negatives and the own samples that are in a pair.
    """
    return {
        "positive_nats": metric_mean(beta * ratio_GR, pairs.winner_GR),
        "negative_nats": metric_mean(beta * ratio_GR, pairs.loser_GR),
        "positive_logratio_nats": metric_mean(ratio_GR, pairs.member_GR & groups.is_positive_GR),
        "negative_logratio_nats": metric_mean(ratio_GR, pairs.member_GR & groups.is_negative_GR),
        "sample_logratio_nats": metric_mean(ratio_GR, pairs.member_GR & groups.is_sample_GR),
        "pair_accuracy_frac": pairs.share(pairs.margin(ratio_GR.detach()) > 0),
    }
