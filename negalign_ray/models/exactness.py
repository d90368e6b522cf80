"""Whether a model's packed log-probs are its own: tried out on a few tokens when it is loaded.

Reading a config cannot tell. Falcon's attention has code of its own that asks nobody for a mask; Jamba, Bamba,
Falcon-H1 and RecurrentGemma carry a state from token to token past any mask. All of them run, with wrong numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from negalign_ray.data.collate import PackedRows, pack_rows
from negalign_ray.errors import ModelError
from negalign_ray.records import Group, Prompt, Response, Role

# Shares of the log-prob of an answer. The second run has the shapes of the first, so that a dense model repeats its
# bits (experts may round otherwise); a plain run and a packed one differ by rounding: SmolLM2-135M by 1e-7 in float32
# and by 7e-4 in bfloat16, and by 8e-7 and 6e-3 with all of its 30 layers.
REPEATED = {torch.float32: 1e-5, torch.bfloat16: 3e-3}
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
PROMPT_TOKENS, ANSWER_TOKENS = 2, 6


@contextmanager
def trial(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode, without gradients, and with no more layers than it takes to have every kind of layer once
    (all, where they are not a list in the base model): a trial of 80 layers would take as long as loading them."""
    was_training = model.training
    num_layers = model.config.get_text_config().num_hidden_layers
    base = model.base_model
    lists = {n: m for n, m in base.named_children() if isinstance(m, nn.ModuleList) and len(m) == num_layers}
    try:
        for name, layers in lists.items():
            kinds = [tuple((name, type(module)) for name, module in layer.named_modules()) for layer in layers]
            setattr(base, name, layers[: 1 + max(kinds.index(kind) for kind in kinds)])
        with torch.no_grad():
            yield
    finally:
        for name, layers in lists.items():
            setattr(base, name, layers)
        model.train(was_training)


def plain_logprobs(model: PreTrainedModel, *, max_tokens: int) -> Tensor:
    """Of the trial's answers [3], one forward pass each; `model` as Hugging Face made it."""
    model.eval()
    sums = []
    for group in _groups(model, max_tokens=max_tokens, first=0):
        for response in group.responses:
            ids_1T = torch.tensor([[*group.prompt.token_ids, *response.token_ids]], device=model.device)
            logprobs_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            sums.append(logprobs_TV.gather(1, ids_1T[0, 1:, None])[len(group.prompt.token_ids) - 1 :].sum())
    return torch.stack(sums)


def require_exact(
    model: PreTrainedModel, packed: Callable[[PackedRows], Tensor], plain_3: Tensor, *, max_tokens: int
) -> None:
    """ModelError when `packed` cannot be called, gives other log-probs than `plain_3`, or lets an answer see another.

    Three answers in two rows: a and b to one prompt, c to another. When a becomes another text, b and c must not move.
    """
    model.eval()
    name = type(model).__name__
    remedy = "choose a decoder-only transformer whose attention follows the masks it is given, such as Llama or Qwen"
    try:
        first_3, second_3 = (
            packed(pack_rows(_groups(model, max_tokens=max_tokens, first=first), max_row_tokens=64).to(model.device))
            for first in (0, 1)
        )
    except (TypeError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name} cannot be run with answers side by side in one row ({reason}); {remedy}.") from error
    for what, got_N, expected_N, tolerance in (
        ("the log-prob of an answer changes with the answer beside it", second_3[1:], first_3[1:], REPEATED),
        ("the log-prob of an answer in a row of several is not that of the answer alone", first_3, plain_3, ROUNDING),
    ):
        difference_N = (got_N - expected_N).abs()
        if not bool((difference_N <= tolerance[model.dtype] * expected_N.abs()).all()):  # nan is no agreement
            largest, size = float(difference_N.max()), float(expected_N.abs().mean())
            raise ModelError(f"{name}: {what}, by {largest:.2g} nats in {size:.0f}; {remedy}.")


def _groups(model: PreTrainedModel, *, max_tokens: int, first: int) -> list[Group]:
    """Arbitrary tokens; `first` chooses the first answer, and nothing else."""
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]  # a Parameter
    num = max(1, min(ANSWER_TOKENS, max_tokens - PROMPT_TOKENS))

    def tokens(start: int, length: int) -> tuple[int, ...]:
        return tuple((start + 7 * i) % vocabulary for i in range(length))

    def group(start: int, *answers: int) -> Group:
        prompt = Prompt(start, "", (("user", ""),), tokens(start, PROMPT_TOKENS), ())
        return Group(start, prompt, tuple(Response(Role.SAMPLE, tokens(a, num), "") for a in answers))

    return [group(3, 11 + 2 * first, 17), group(5, 19)]
