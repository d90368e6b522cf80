"""What would fail inside a started role, or silently do something else, is refused with the plan."""

import json
import shutil

import pytest

from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.plan_checks import instruction_tokens, max_positions
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.data.instructions import Instruction
from negalign_ray.errors import ConfigError
from tests.toy import CHAT_TEMPLATE, make_toy_tokenizer

NEAT = 'method={"name": "neat", "reward_head": "toxicity"}'


@pytest.fixture
def instructions_file(tmp_path):
    def write(*entries: tuple[str, str | None]) -> str:
        lines = [{"id": str(n), "text": text} | ({"polarity": p} if p else {}) for n, (text, p) in enumerate(entries)]
        path = tmp_path / "instructions.yaml"
        path.write_text(json.dumps(lines))
        return f"sampling.instructions={path}"

    return write


@pytest.fixture
def model_with_positions(toy_model, tmp_path):
    def make(num: int) -> str:
        folder = shutil.copytree(toy_model, tmp_path / f"positions-{num}")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": num}))
        return str(folder)

    return make


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_several_devices_for_one_sampler_are_refused_with_what_to_set_instead(toy_config, engine):
    config = toy_config("samplers.tensor_parallel_size=2", f"samplers.engine={engine}")
    with pytest.raises(ConfigError, match=r"samplers\.tensor_parallel_size=2: .*set it to 1 and raise samplers\.num"):
        make_plan(config)


def test_zero_0_in_bfloat16_is_refused_and_in_float32_is_not(toy_config):
    with pytest.raises(ConfigError, match=r"learners\.zero_stage=0 with bfloat16 .*zero_stage=1"):
        make_plan(toy_config("learners.zero_stage=0", "learners.dtype=bfloat16"))
    assert make_plan(toy_config("learners.zero_stage=0", "learners.dtype=float32")).learner_dtype == "float32"


def test_samplers_have_room_for_the_longest_instruction_before_any_prompt(toy_config, instructions_file):
    plan = make_plan(toy_config(instructions_file(("Be kind. " * 36, None), ("Be brief.", None))))  # 324 tokens
    chat = plan.chat()
    longest = max(len(chat.prompt_ids(p.messages, i.text)) for p in plan.data.train for i in plan.instructions)
    room_for_prompts = plan.config.data.max_prompt_tokens - max(len(p.token_ids) for p in plan.data.train)
    assert room_for_prompts > 0
    assert longest + room_for_prompts + plan.max_answer_tokens <= plan.max_model_len <= 600 + 324 + 32 + 60


def test_a_default_system_turn_that_the_instruction_replaces_does_not_hide_its_length():
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    chat = ChatTokenizer(make_toy_tokenizer(), template=default + "{% endif %}" + CHAT_TEMPLATE)
    instruction = Instruction("a", "Be honest, kind and brief with everyone.")
    room = instruction_tokens(chat, (instruction,))
    for messages in ((("user", "Why?"),), (("system", "You sell shoes."), ("user", "Why?"))):
        assert len(chat.prompt_ids(messages, instruction.text)) <= len(chat.prompt_ids(messages)) + room
    assert instruction_tokens(chat, ()) == 0


def test_a_context_beyond_the_model_s_positions_is_refused_with_the_number_that_fits(toy_config, instructions_file):
    short = instructions_file(("Be kind.", None))
    with pytest.raises(
        ConfigError, match=r"samplers need room for \d+ tokens: data\.max_prompt_tokens=1000.*"
    ) as found:
        make_plan(toy_config(short, "data.max_prompt_tokens=1000"))
    assert "1024 positions (max_position_embeddings)" in str(found.value)
    fitting = str(found.value).split("ower data.max_prompt_tokens to ")[1].split(",")[0]
    assert make_plan(toy_config(short, f"data.max_prompt_tokens={fitting}")).max_model_len == 1024


def test_instructions_that_alone_are_too_long_are_named(toy_config, instructions_file):
    endless = instructions_file(("Be kind. " * 150, None))
    with pytest.raises(
        ConfigError, match=r"of the longest of sampling\.instructions=.*\. Shorten instructions or answers"
    ):
        make_plan(toy_config(endless))


def test_rows_beyond_the_positions_of_a_reference_are_refused_with_its_setting(toy_config, model_with_positions):
    with pytest.raises(ConfigError, match=r"have \d+ tokens, and references\.rneg=.* has 100 positions.*100 in all"):
        make_plan(toy_config(f"references.rneg={model_with_positions(100)}"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, None),
        ({"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, 8192),
    ],
)
def test_positions_are_read_where_they_are_a_fixed_number(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert max_positions(tmp_path) == expected


def test_neat_without_instructions_of_both_kinds_is_refused_with_what_they_lack(toy_config, instructions_file):
    with pytest.raises(
        ConfigError, match=r"instructions=moral has 0 with polarity positive, 0 negative and 11 without"
    ):
        make_plan(toy_config(NEAT, "sampling.instructions=moral"))
    with pytest.raises(ConfigError, match=r"instructions=null has 0 .*Set sampling\.instructions=neat"):
        make_plan(toy_config(NEAT, "sampling.instructions=null"))
    good = instructions_file(("Be kind.", "positive"), ("Be brief.", None))
    with pytest.raises(
        ConfigError, match=r"has 1 with polarity positive, 0 negative and 1 without.*neat_pp, or method\.positive"
    ):
        make_plan(toy_config(NEAT, good))


def test_good_instructions_of_ones_own_are_taken_alone_where_that_is_said(toy_config, instructions_file):
    good = instructions_file(("Be kind.", "positive"), ("Be brief.", "positive"))
    with pytest.raises(ConfigError, match=r"has 2 with polarity positive, 0 negative"):
        make_plan(toy_config(NEAT, good))
    assert len(make_plan(toy_config(NEAT, good, "method.positive_only=true")).instructions) == 2
    mixed = instructions_file(("Be kind.", "positive"), ("Be rude.", "negative"))
    with pytest.raises(ConfigError, match=r"positive_only=true, but .* has 1 with polarity positive, 1 negative"):
        make_plan(toy_config(NEAT, mixed, "method.positive_only=true"))


def test_neat_takes_both_kinds_in_any_file_and_neat_pp_takes_good_ones_alone(toy_config, instructions_file):
    own = instructions_file(("Be kind.", "positive"), ("Be rude.", "negative"))
    for instructions in (own, "sampling.instructions=neat", "sampling.instructions=neat_pp"):
        assert make_plan(toy_config(NEAT, instructions)).instructions
