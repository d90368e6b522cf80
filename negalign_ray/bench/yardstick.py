"""The yardstick: online D2O as most would write it first, with `transformers` alone, in one process.

Generate with left padding, score one padded batch of prompt + response rows under policy and reference with full
logits, D2O loss, backward, clip, torch AdamW. The model is in one number type throughout, as
`from_pretrained(dtype=...)` gives it. Prompts, instructions, number and length of answers, loss and learning rate are
those of our own step.

# Axes: B = rows (answers wanted, or prompt + response), T = their padded length, V = vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import open_log, start_actor, thread_environment
from negalign_ray.records import Order, Role, TokenIds

IGNORED = -100


@dataclass(frozen=True, slots=True)
class YardstickStep:
    seconds: float
    generate_s: float
    train_s: float  # both models' log-probs, backward and optimizer
    sampled_tokens: int
    trained_tokens: int  # without padding
    loss: float


@ray.remote(num_cpus=0)
class Yardstick:
    def __init__(self, plan: Plan, *, dtype: str, threads: int) -> None:
        open_log(plan.config.run_dir, f"yardstick-{dtype}")
        torch.set_num_threads(threads)
        torch.manual_seed(plan.config.run.seed)
        self._loop = HandWrittenLoop(plan, dtype=getattr(torch, dtype))

    def step(self, orders: Sequence[Order]) -> YardstickStep:
        return self._loop.step(orders)


def make_yardstick(plan: Plan, *, dtype: str, threads: int) -> Any:
    options = {"runtime_env": {"env_vars": thread_environment(str(threads))}}
    return start_actor(Yardstick, options, plan, dtype=dtype, threads=threads)


class HandWrittenLoop:
    """Policy, frozen copy and optimizer; one `step` per batch of orders."""

    def __init__(self, plan: Plan, *, dtype: torch.dtype) -> None:
        settings = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
        self._config = plan.config
        self._method: Any = plan.config.method
        self._stop_ids = list(plan.stop_ids)
        self._tokenizer = AutoTokenizer.from_pretrained(
            plan.model_path, padding_side="left", local_files_only=True, trust_remote_code=False
        )
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        # Any: `generate` is declared for a mixin that its own base class does not satisfy.
        self._model: Any = AutoModelForCausalLM.from_pretrained(plan.model_path, **settings)
        self._reference = AutoModelForCausalLM.from_pretrained(plan.model_path, **settings).eval()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=plan.config.learners.lr, weight_decay=0.0)

    def step(self, orders: Sequence[Order]) -> YardstickStep:
        started = time.perf_counter()
        answers = self._generate([request.context_ids for order in orders for request in order.requests])
        generated = time.perf_counter()
        loss, trained_tokens = self._train(orders, answers)
        finished = time.perf_counter()
        return YardstickStep(
            seconds=finished - started,
            generate_s=generated - started,
            train_s=finished - generated,
            sampled_tokens=sum(map(len, answers)),
            trained_tokens=trained_tokens,
            loss=loss,
        )

    @torch.no_grad()
    def _generate(self, contexts: Sequence[TokenIds]) -> list[list[int]]:
        self._model.eval()
        batch = self._tokenizer.pad({"input_ids": [list(context) for context in contexts]}, return_tensors="pt")
        output_BT = self._model.generate(
            **batch,
            do_sample=True,
            temperature=self._config.sampling.temperature,
            top_p=self._config.sampling.top_p,
            top_k=0,
            max_new_tokens=self._config.sampling.max_new_tokens,
            eos_token_id=self._stop_ids,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return [self._until_stop(row) for row in output_BT[:, batch["input_ids"].shape[1] :].tolist()]

    def _until_stop(self, token_ids: list[int]) -> list[int]:
        ends = [position for position, token in enumerate(token_ids) if token in self._stop_ids]
        return token_ids[: ends[0] + 1] if ends else token_ids

    def _train(self, orders: Sequence[Order], answers: Sequence[list[int]]) -> tuple[float, int]:
        """D2O (methods/d2o.py) with one negative per prompt; (loss, tokens of all rows without padding)."""
        rows, negatives, samples = _rows_of(orders, answers)
        input_ids_BT, attention_BT, labels_BT = _pad(rows, pad_id=self._tokenizer.pad_token_id)
        self._model.train()
        with torch.no_grad():
            reference_B = _logprobs(self._reference, input_ids_BT, attention_BT, labels_BT)
        ratio_B = _logprobs(self._model, input_ids_BT, attention_BT, labels_BT) - reference_B
        anchor = torch.stack([ratio_B[members].mean() for members in samples])
        logit = self._method.beta * anchor - self._method.alpha * ratio_B[negatives]
        loss = -F.logsigmoid(logit).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.learners.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item(), int(attention_BT.sum())


_Rows = list[tuple[list[int], list[int]]]  # (prompt, response)


def _rows_of(orders: Sequence[Order], answers: Sequence[list[int]]) -> tuple[_Rows, list[int], list[list[int]]]:
    """All rows, each prompt's negative first; the negatives' indices; the samples' indices per prompt."""
    rows: _Rows = []
    negatives, samples = [], []
    remaining = iter(answers)
    for order in orders:
        prompt = list(order.prompt.token_ids)
        negative = next(response for response in order.prompt.responses if response.role is Role.NEGATIVE)
        negatives.append(len(rows))
        rows.append((prompt, list(negative.token_ids)))
        samples.append(list(range(len(rows), len(rows) + len(order.requests))))
        rows += [(prompt, next(remaining)) for _ in order.requests]
    return rows, negatives, samples


def _pad(rows: _Rows, *, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(input ids, attention mask, labels), each [B, T], padded on the right; labels are response tokens only."""
    length = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids_BT = torch.full((len(rows), length), pad_id)
    labels_BT = torch.full((len(rows), length), IGNORED)
    attention_BT = torch.zeros(len(rows), length, dtype=torch.long)
    for index, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids_BT[index, :end] = torch.tensor(prompt + response)
        labels_BT[index, len(prompt) : end] = torch.tensor(response, dtype=torch.long)
        attention_BT[index, :end] = 1
    return input_ids_BT, attention_BT, labels_BT


def _logprobs(model: Any, input_ids_BT: Tensor, attention_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Summed response log-probs [B], float32, by way of all logits [B, T, V]."""
    logits_BTV = model(input_ids=input_ids_BT, attention_mask=attention_BT, use_cache=False).logits[:, :-1].float()
    targets_BT = labels_BT[:, 1:]
    is_response_BT = targets_BT != IGNORED
    chosen_BT = logits_BTV.log_softmax(-1).gather(2, targets_BT.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (chosen_BT * is_response_BT).sum(1)
