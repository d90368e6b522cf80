"""A tokenizer and its chat template as one object that knows where a response begins and how a turn ends.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n | Hello!<|im_end|> | \n
    `------------------ prompt_ids ----------------------' `- response_ids -' `- dropped

Nothing is assumed about the template: what precedes and follows an answer is found by rendering one, and a template for
which prompt tokens + response tokens are not the tokens of the whole conversation is refused with the reason.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from negalign_ray.data.turns import Messages
from negalign_ray.errors import DataError, ModelError
from negalign_ray.records import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
QUESTION, ANSWER, SYSTEM = "Question0probe", "Answer0probe", "System0probe"
ANCHOR: Messages = (("user", QUESTION),)
REMEDY = "Set model.chat_template to a jinja file"


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder or hub name; never runs code from it. ModelError when there is none.

    A folder whose tokenizer.json is complete is read without importing torch (1 s instead of 6 s).
    """
    path = Path(folder)
    if _is_plain(path):
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader  # type: ignore[assignment]
    try:
        return Loader.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model.path={str(folder)!r}: no tokenizer could be loaded from it ({reason}).") from error


def _is_plain(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    if not config.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    settings = json.loads(config.read_text(encoding="utf-8"))
    return "auto_map" not in settings and settings.get("tokenizer_class") in (
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
    )


def load_chat(folder: str | Path, *, template: Path | None = None) -> "ChatTokenizer":
    """Tokenizer of `folder` with the chat template in the jinja file `template` (config: model.chat_template)."""
    if template is not None and not template.is_file():
        raise DataError(f"model.chat_template={str(template)!r}: no such file.")
    text = None if template is None else template.read_text(encoding="utf-8")
    return ChatTokenizer(load_tokenizer(folder), template=text)


def require_same_tokens(folder: Path, model_path: Path, *, setting: str) -> None:
    """ModelError unless both have one vocabulary: token ids travel to the model in `folder`, never text.

    A warning where their chat templates differ: the other model is then asked under a template that is not its own.
    """
    ours, theirs = (load_tokenizer(path) for path in (model_path, folder))
    if ours.get_vocab() != theirs.get_vocab():
        raise ModelError(
            f"{setting}={folder} has a vocabulary of {len(theirs)} tokens that is not the policy's ({len(ours)}); "
            f"choose a model of the policy's family, or {setting}=null."
        )
    if ours.chat_template != theirs.chat_template:
        log.warning(
            "%s=%s has another chat template than model.path=%s; both read prompts under that of the latter "
            "(or of model.chat_template), so the comparison may be unfair to the former",
            *(setting, folder, model_path),
        )


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as the chat template writes it, and its tokens."""

    text: str
    token_ids: TokenIds


class ChatTokenizer:
    """Prompts and responses as token ids; see the module's docstring.

    Raises DataError when there is no chat template, when it does not end the assistant's turn with a special token, or
    when it is not prefix-stable.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, template: str | None = None):
        self.tokenizer = tokenizer
        self.own_template = template  # None: the tokenizer's
        if template is None and not tokenizer.chat_template:
            raise DataError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, so it does not say where an answer "
                f"begins or ends. {REMEDY}, or use an instruction-tuned model."
            )
        self._special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if isinstance(tokenizer.eos_token, str):
            self._special.setdefault(tokenizer.eos_token, tokenizer.eos_token_id)
        self.supports_system = self._takes_system_turn()
        self._anchor = self.prompt(ANCHOR)
        self.end_text, self._after_end = self._find_end_of_turn()
        end_id = self.encode(self.end_text)[-1]
        eos = tokenizer.eos_token_id
        self.end_ids: TokenIds = (end_id,) if eos in (None, end_id) else (end_id, eos)
        self._require_stable_prefix()

    def prompt(self, messages: Messages, instruction: str | None = None) -> RenderedPrompt:
        """`messages` up to where the answer begins (the generation prompt is included).

        The instruction goes before the content of the system turn, or makes one; where the template refuses system
        turns, before the first user turn. Raises DataError when the template refuses the turns.
        """
        if instruction:
            messages = _with_instruction(messages, instruction)
        if not self.supports_system:
            messages = _fold_system_turn(messages)
        text = self._render(messages, generate=True)
        return RenderedPrompt(text, self.encode(text))

    def prompt_ids(self, messages: Messages, instruction: str | None = None) -> TokenIds:
        """Token ids of `prompt(messages, instruction)`."""
        return self.prompt(messages, instruction).token_ids

    def response_ids(self, text: str, *, after: RenderedPrompt | None = None) -> TokenIds:
        """Tokens of the answer `text`, ending with the end-of-turn token that the template itself writes.

        They are cut from the tokens of prompt and answer together (`after`; by default a short question), so that
        `after.token_ids + response_ids(text, after=after)` always equals `conversation_ids`; DataError when the
        tokenizer merges the end of the prompt with the start of the answer.
        """
        prompt = after or self._anchor
        ids = self.encode(prompt.text + self._answer_text(text))
        cut = len(prompt.token_ids)
        if ids[:cut] != prompt.token_ids:
            raise DataError("the tokenizer merges the end of the prompt with the start of the answer")
        return ids[cut:]

    def conversation_ids(self, messages: Messages, answer: str) -> TokenIds:
        """Tokens of the conversation rendered whole, through the answer's end of turn; what a loss mask lies over."""
        messages = messages if self.supports_system else _fold_system_turn(messages)
        whole = self._render((*messages, ("assistant", answer)), generate=False)
        return self.encode(whole.removesuffix(self._after_end))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return self._decode(ids, skip_special=True)

    def decode_raw(self, ids: Sequence[int]) -> str:
        """Text of `ids` with the special tokens written out."""
        return self._decode(ids, skip_special=False)

    def special_token_in(self, text: str) -> str | None:
        """A special token that `text` spells out (it would be read as control, not as text), or None."""
        return next((token for token in self._special if token in text), None)

    def encode(self, text: str) -> TokenIds:
        """Token ids of a text that already holds its special tokens; nothing is added, nothing is cut."""
        if not self.tokenizer.is_fast:
            return tuple(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
        # Half of a tokenizer call is Python around this one line; data sets have 10^5 rows.
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        return tuple(backend.encode(text, add_special_tokens=False).ids)

    def _decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _render(self, messages: Messages, *, generate: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                chat_template=self.own_template,
                tokenize=False,
                add_generation_prompt=generate,
                # Reasoning templates otherwise put an empty thought between generation prompt and answer (Qwen3).
                enable_thinking=False,
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"the chat template refuses these turns: {error}") from error
        assert isinstance(text, str)
        return text

    def _takes_system_turn(self) -> bool:
        """Some templates raise on a system turn, others silently leave it out."""
        try:
            return SYSTEM in self._render((("system", SYSTEM), *ANCHOR), generate=True)
        except DataError:
            self._render(ANCHOR, generate=True)  # raises when the system turn was not the reason
            return False

    def _find_end_of_turn(self) -> tuple[str, str]:
        """Text from the end of an answer through the first special token, and what the template writes after that."""
        whole = self._render((*ANCHOR, ("assistant", ANSWER)), generate=False)
        if not whole.startswith(self._anchor.text):
            raise DataError(
                "The chat template is not prefix-stable: a conversation with an answer does not begin with the prompt "
                f"that asks for it, so a loss mask would cover wrong tokens. {REMEDY} that only ever appends."
            )
        before, found, after = whole[len(self._anchor.text) :].partition(ANSWER)
        if not found or before.strip():
            raise DataError(
                f"The chat template puts {before[:40]!r} between the generation prompt and the answer, so the model "
                f"would be trained on text it is never asked to write there. {REMEDY} whose generation prompt ends "
                "where answers begin."
            )
        ends = [after.index(token) + len(token) for token in self._special if token in after]
        if not ends:
            raise DataError(
                f"The chat template writes {after[:40]!r} after an answer and no special token, so a model could not "
                f"learn to stop. {REMEDY} that ends the assistant's turn with {self.tokenizer.eos_token!r}."
            )
        return after[: min(ends)], after[min(ends) :]

    def _answer_text(self, answer: str) -> str:
        """The rendered answer through its end of turn, trimmed or spaced as the template does it."""
        whole = self._render((*ANCHOR, ("assistant", answer)), generate=False)
        end = len(whole) - len(self._after_end)
        text = whole[len(self._anchor.text) : end]
        if not (whole.startswith(self._anchor.text) and text.endswith(self.end_text)):
            raise DataError("the chat template rewrites this answer together with the text around it.")
        return text

    def _require_stable_prefix(self) -> None:
        """The same for tokens as `_find_end_of_turn` does for text."""
        for answer in (ANSWER, "a", "1.", "(x)", "é"):
            whole = self.conversation_ids(ANCHOR, answer)
            cut = len(self._anchor.token_ids)
            if whole[:cut] != self._anchor.token_ids or whole[-1] != self.end_ids[0]:
                raise DataError(
                    "The chat template is not prefix-stable: prompt tokens + answer tokens are not the tokens of the "
                    f"whole conversation. {REMEDY} whose generation prompt ends with a special token or a newline."
                )


def _with_instruction(messages: Messages, instruction: str) -> Messages:
    role, content = messages[0]
    if role == "system":
        return (("system", f"{instruction}\n\n{content}"), *messages[1:])
    return (("system", instruction), *messages)


def _fold_system_turn(messages: Messages) -> Messages:
    """Put the system turn before the content of the first user turn."""
    if messages[0][0] != "system":
        return messages
    first = next((i for i, (role, _) in enumerate(messages) if role == "user"), None)
    if first is None:
        raise DataError("there is no user turn that could carry the instruction.")
    folded = ("user", f"{messages[0][1]}\n\n{messages[first][1]}")
    return (*messages[1:first], folded, *messages[first + 1 :])
