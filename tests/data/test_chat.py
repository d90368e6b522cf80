"""Prompt and response tokens under several chat templates."""

import pickle
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.data.chat import ChatTokenizer, load_chat, load_tokenizer, require_same_tokens
from negalign_ray.errors import DataError, ModelError
from tests.toy import CHAT_TEMPLATE, make_toy_tokenizer

HI = (("user", "Hi"),)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHAT_TEMPLATE
)
DROPS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHAT_TEMPLATE
TRIMS = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' <|endoftext|>' }}{% endif %}{% endfor %}"
)
THINKS = CHAT_TEMPLATE.replace(
    "{{ '<|im_start|>' + message['role'] + '\\n' +",
    "{{ '<|im_start|>' + message['role'] + '\\n' + ('<think></think>' if message['role'] == 'assistant' else '') +",
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40).map(str.strip)


def make_chat(template):
    return ChatTokenizer(make_toy_tokenizer(), template=template)


def test_prompt_and_response_by_hand(chat):
    encode = chat.encode
    assert chat.prompt_ids(HI) == (1, *encode("user\nHi"), 2, *encode("\n"), 1, *encode("assistant\n"))
    assert chat.response_ids("Hello") == (*encode("Hello"), 2)
    assert chat.end_ids == (2,)
    assert chat.end_text == "<|im_end|>"
    assert chat.decode(chat.response_ids("Hello")) == "Hello"
    assert chat.decode_raw(chat.response_ids("Hello")) == "Hello<|im_end|>"


@settings(max_examples=200, deadline=None)
@given(question=TEXT.filter(bool), answer=TEXT)
def test_prompt_plus_response_are_the_tokens_of_the_whole_conversation(chat, question, answer):
    if chat.special_token_in(question) or chat.special_token_in(answer):
        return
    messages = (("user", question), ("assistant", "ok"), ("user", question))
    prompt = chat.prompt(messages)
    response = chat.response_ids(answer, after=prompt)
    assert prompt.token_ids + response == chat.conversation_ids(messages, answer)
    assert response == chat.response_ids(answer)
    assert chat.decode(response) == answer


@settings(max_examples=100, deadline=None)
@given(answer=TEXT)
def test_a_loss_mask_over_the_response_covers_the_answer_and_one_end_token_only(chat, answer):
    if chat.special_token_in(answer):
        return
    ids = chat.conversation_ids(HI, answer)
    mask = [False] * len(chat.prompt_ids(HI)) + [True] * len(chat.response_ids(answer))
    inside = [token for token, is_loss in zip(ids, mask, strict=True) if is_loss]
    outside = [token for token, is_loss in zip(ids, mask, strict=True) if not is_loss]
    assert chat.decode_raw(inside) == answer + "<|im_end|>"
    assert chat.decode_raw(outside) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_instruction_makes_a_system_turn_or_goes_before_one(chat):
    new = chat.decode_raw(chat.prompt_ids(HI, "Be kind."))
    assert new.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    old = chat.decode_raw(chat.prompt_ids((("system", "Be brief."), *HI), "Be kind."))
    assert old.startswith("<|im_start|>system\nBe kind.\n\nBe brief.<|im_end|>\n<|im_start|>user\nHi")


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_template_without_system_turns_gets_the_instruction_in_the_first_user_turn(template):
    chat = make_chat(template)
    assert not chat.supports_system
    text = chat.decode_raw(chat.prompt_ids((*HI, ("assistant", "a"), ("user", "b")), "Be kind."))
    assert text.startswith("<|im_start|>user\nBe kind.\n\nHi<|im_end|>")
    assert "system" not in text
    messages = (("system", "Be brief."), *HI)
    assert chat.prompt_ids(messages) + chat.response_ids("x") == chat.conversation_ids(messages, "x")


def test_the_end_of_turn_is_the_templates_own_and_eos_is_a_second_stop():
    chat = make_chat(INST)
    assert chat.end_text == " <|endoftext|>"
    assert chat.end_ids == (0, 2)
    assert chat.decode_raw(chat.response_ids("Hello")) == " Hello <|endoftext|>"
    assert chat.prompt_ids(HI) + chat.response_ids("Hello") == chat.conversation_ids(HI, "Hello")


def test_a_template_that_trims_answers_trims_response_tokens_alike():
    chat = make_chat(TRIMS)
    assert chat.response_ids("  Hello \n") == chat.response_ids("Hello")


def test_a_tokenizer_without_chat_template_is_refused_with_the_remedy():
    tokenizer = make_toy_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"has no chat template.*Set model.chat_template to a jinja file"):
        ChatTokenizer(tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT_TEMPLATE.replace("{% for", "{{ messages | length }}{% for"), "not prefix-stable"),
        (THINKS, "puts '<think></think>' between the generation prompt and the answer"),
        (CHAT_TEMPLATE.split("{% if add_generation_prompt")[0], "between the generation prompt and the answer"),
        (CHAT_TEMPLATE.replace("<|im_end|>", "</end>").replace("<|im_start|>", ""), "no special token"),
        ("{{ raise_exception('never') }}", "refuses these turns: never"),
        ("{% for", "refuses these turns"),
    ],
)
def test_templates_that_would_give_wrong_masks_are_refused(template, message):
    with pytest.raises(DataError, match=message):
        make_chat(template)


def test_a_seam_where_tokens_merge_is_an_error_not_a_wrong_mask():
    tokenizer = make_toy_tokenizer()
    vocab = tokenizer.get_vocab()
    pairs = sorted(token for token in vocab if len(token) == 2 and token.isascii() and token.isalpha())
    joined = next(token for token in pairs if not {token[0] + "a", token[0] + "A"} & set(vocab))
    template = "{% for m in messages %}{% if m['role'] == 'user' %}" + joined[0] + "{% else %}{{ m['content'] }}"
    template += "<|im_end|>{% endif %}{% endfor %}"
    chat = ChatTokenizer(tokenizer, template=template)  # the probes do not merge with it, other answers do
    with pytest.raises(DataError, match="merges the end of the prompt with the start of the answer"):
        chat.response_ids(joined[1])


def test_special_tokens_spelt_out_in_a_text_are_found(chat):
    assert chat.special_token_in("a <|im_end|> b") == "<|im_end|>"
    assert chat.special_token_in("a b") is None


def test_encoding_equals_a_call_of_the_tokenizer_even_after_it_truncated(chat):
    text = "<|im_start|>user\nHow do I learn to cook? ✓é" * 3
    chat.tokenizer(text, truncation=True, max_length=4)
    assert chat.encode(text) == tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert len(chat.encode(text)) > 4


def test_a_chat_tokenizer_survives_pickling(chat):
    again = pickle.loads(pickle.dumps(chat))  # noqa: S301 - our own bytes
    assert again.prompt_ids(HI) == chat.prompt_ids(HI)


def test_a_model_folder_loads_as_with_autotokenizer(toy_model):
    from transformers import AutoTokenizer

    text = "<|im_start|>What is the best way?\n é"
    mine, theirs = load_tokenizer(toy_model), AutoTokenizer.from_pretrained(toy_model)
    assert mine(text)["input_ids"] == theirs(text)["input_ids"]
    assert mine.chat_template == theirs.chat_template
    assert load_chat(toy_model).end_ids == (2,)


def test_a_template_file_replaces_the_tokenizers_own(toy_model, tmp_path):
    (tmp_path / "inst.jinja").write_text(INST)
    assert load_chat(toy_model, template=tmp_path / "inst.jinja").end_ids == (0, 2)
    with pytest.raises(DataError, match=r"model.chat_template='.*none.jinja': no such file"):
        load_chat(toy_model, template=tmp_path / "none.jinja")


def test_a_folder_without_tokenizer_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_brings_code_is_not_run(toy_model, tmp_path):
    folder = shutil.copytree(toy_model, tmp_path / "model")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    config = '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises((ModelError, DataError)):
        load_chat(folder)


def test_checking_data_needs_no_torch(toy_model):
    code = (
        "import sys; from negalign_ray.data import load, check, chat, instructions; "
        f"chat.load_chat({str(toy_model)!r}); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_model_with_another_vocabulary_is_refused(toy_model, tmp_path, caplog):
    require_same_tokens(toy_model, toy_model, setting="references.rpos")
    tokenizer = make_toy_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"references\.rpos=.* vocabulary of 305 tokens .* policy's \(304\)"):
        require_same_tokens(tmp_path, toy_model, setting="references.rpos")
    assert not caplog.records


def test_a_model_with_another_chat_template_is_warned_of(toy_model, tmp_path, caplog):
    tokenizer = make_toy_tokenizer()
    tokenizer.chat_template = TRIMS
    tokenizer.save_pretrained(tmp_path)
    require_same_tokens(tmp_path, toy_model, setting="references.rpos")
    [warning] = caplog.messages
    assert "another chat template" in warning
