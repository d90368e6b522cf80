"""How a (prompt, response) pair becomes the tokens that a reward model reads.

| tokenizer | input: prompt_response | input: response |
|---|---|---|
| with a chat template | a user and an assistant turn as the template writes them | the response |
| of an encoder | two segments: [CLS] prompt [SEP] response [SEP] | the response |
| of a causal model | prompt, empty line, response, end-of-text token | the response, end-of-text token |

The prompt is one plain text, as scorers get it: the last user turn, or a conversation written out. What is too long
loses its beginning under a chat template or in a causal model (the response ends the text), and the end of its longer
segment in an encoder.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negalign_ray.rewards.protocol import Pair, TextInput

# Axes: B = rows of a batch, T = tokens.
logger = logging.getLogger(__name__)
Encoded = dict[str, list[int]]  # "input_ids" and whatever else the backbone's tokenizer makes, per token


@dataclass(frozen=True)
class PairEncoder:
    tokenizer: Any
    text_input: TextInput
    max_tokens: int
    is_causal: bool

    def encode(self, pairs: Sequence[Pair]) -> list[Encoded]:
        """One row per pair, of at most `max_tokens` tokens."""
        if not pairs:
            return []
        rows = self._as_texts(pairs) if self._is_one_text else self._as_segments(pairs)
        num_cut = sum(len(row["input_ids"]) >= self.max_tokens for row in rows)
        if num_cut:
            logger.debug("%d of %d texts reach the limit of %d tokens", num_cut, len(pairs), self.max_tokens)
        return rows

    def batch(self, rows: Sequence[Encoded], *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """[B, T] per key, padded on the right; `attention_mask` is 0 over padding."""
        padded = self.tokenizer.pad(
            {key: [row[key] for row in rows] for key in rows[0]}, return_tensors="pt", padding_side="right"
        )
        return {key: values.to(device) for key, values in padded.items()}

    @property
    def _is_one_text(self) -> bool:
        return self.is_causal or bool(self.tokenizer.chat_template)

    def _as_segments(self, pairs: Sequence[Pair]) -> list[Encoded]:
        responses = [response for _, response in pairs]
        first = responses if self.text_input == "response" else [prompt for prompt, _ in pairs]
        second = None if self.text_input == "response" else responses
        return _rows(self.tokenizer(first, second, truncation=True, max_length=self.max_tokens))

    def _as_texts(self, pairs: Sequence[Pair]) -> list[Encoded]:
        texts = [self._text(pair) for pair in pairs]
        rows = _rows(self.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False))
        return [{key: values[-self.max_tokens :] for key, values in row.items()} for row in rows]

    def _text(self, pair: Pair) -> str:
        prompt, response = pair
        end = self.tokenizer.eos_token or ""
        if self.text_input == "response":
            return response + end
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False)
            return text.rstrip("\n")  # last-token pooling reads the end of the turn, not a line break after it
        return f"{prompt}\n\n{response}{end}"


def _rows(encoded: Any) -> list[Encoded]:
    keys = list(encoded)
    return [dict(zip(keys, values, strict=True)) for values in zip(*(encoded[key] for key in keys), strict=True)]
