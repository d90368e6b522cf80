"""LD-Align's guide under training and in use: one process, plain torch; the training loop's Learner.

# Axes: N = responses in a call, in the order (group 0 response 0, group 0 response 1, ...); Z = numbers in a vector.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from negalign_ray.config import LearnersConfig
from negalign_ray.data.collate import first_fit
from negalign_ray.engines.deepspeed_engine import StepStats
from negalign_ray.engines.lr_schedule import lr_at
from negalign_ray.models.device import device_of
from negalign_ray.models.guide import GuideModel, GuideRows
from negalign_ray.records import Group


class GuideEngine:
    """Learner (loops/roles.py), whose log-probs are log p_psi(y | x, phi(x, y)).

    `zero_frac` of the answers of `logprobs` get a vector of zeros, drawn from `seed`. Everything else is exact.
    """

    def __init__(self, model: GuideModel, *, config: LearnersConfig, zero_frac: float, seed: int):
        self._device = torch.device(device_of("guide", gpus=config.gpus))
        self.config = config
        self._model, self._zero_frac = model.to(self._device), zero_frac
        self._generator = torch.Generator().manual_seed(seed)
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trainable, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
        self._num_steps_done = 0

    # -- Learner -----------------------------------------------------------------------------------------------

    def logprobs(self, groups: Sequence[Group]) -> Tensor:
        """Summed log-probs [N] in nats, with gradient; some of them under the vector of zeros."""
        if not any(group.responses for group in groups):
            return torch.zeros(0, device=self._device)
        rows = self._rows(groups)
        latent_NZ = self._model.encode(rows)
        keep_N1 = torch.rand(len(latent_NZ), 1, generator=self._generator) >= self._zero_frac
        return self._model.decode(rows, latent_NZ * keep_N1.to(self._device))

    def logprobs_and_complements(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("the guide's loss reads no complements")

    def no_grad_token_logprobs(self, groups: Sequence[Group]) -> list[Tensor]:
        raise NotImplementedError("no sampler runs the guide, so there is nothing to compare with")

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        loss.backward()

    def step(self) -> StepStats:
        lr = lr_at(self._num_steps_done, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        grad_norm = torch.nn.utils.clip_grad_norm_(self._trainable, self.config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._num_steps_done += 1
        return StepStats(grad_norm=float(grad_norm), lr=lr)

    def gather_weights(self) -> list[tuple[str, Tensor]]:
        """Nobody else runs the guide."""
        return []

    # -- after the fit -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, groups: Sequence[Group]) -> list[Tensor]:
        """phi of every response, one [responses, Z] tensor per group, on the CPU."""
        results: list[Tensor] = [torch.zeros(0) for _ in groups]
        for members in self._micro_batches(groups):
            latent_NZ = self._model.encode(self._rows([groups[i] for i in members])).cpu()
            for i, part in zip(members, latent_NZ.split([len(groups[i].responses) for i in members]), strict=True):
                results[i] = part
        return results

    @torch.no_grad()
    def nll_per_token(self, groups: Sequence[Group], *, control: bool) -> float:
        """-log p_psi(y | x, vector) in nats per answer token, over all responses; `control`: the vector of zeros."""
        total, num_tokens = 0.0, 0
        for members in self._micro_batches(groups):
            rows = self._rows([groups[i] for i in members])
            latent_NZ = self._model.encode(rows)
            total -= self._model.decode(rows, latent_NZ * (0.0 if control else 1.0)).double().sum().item()
            num_tokens += int(rows.is_answer_BT.sum())
        return total / max(num_tokens, 1)

    def _rows(self, groups: Sequence[Group]) -> GuideRows:
        return GuideRows.of(groups).to(self._device)

    def _micro_batches(self, groups: Sequence[Group]) -> Iterator[list[int]]:
        sizes = [group.num_tokens for group in groups]
        for members in first_fit(sizes, self.config.micro_batch_tokens):
            if any(groups[i].responses for i in members):
                yield members
