"""What a run gets: train and held-out prompts, or a refusal before anything starts."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negalign_ray.config import DataConfig
from negalign_ray.data.load import load_prompts
from negalign_ray.errors import DataError
from negalign_ray.records import Role


def negatives(numbers):
    return [{"prompt": f"question {i}", "rejected": f"bad {i}"} for i in numbers]


def texts(prompts):
    return {prompt.text for prompt in prompts}


def test_held_out_prompts_are_kept_apart_and_the_seed_decides(chat, write_jsonl):
    config = DataConfig(path=write_jsonl(negatives(range(40))), heldout_frac=0.25)
    data = load_prompts(config, chat, seed=1)
    assert (len(data.train), len(data.heldout), data.heldout_rest) == (30, 10, ())
    assert not texts(data.train) & texts(data.heldout)
    assert load_prompts(config, chat, seed=1) == data
    assert texts(load_prompts(config, chat, seed=2).heldout) != texts(data.heldout)


def test_prompts_without_a_negative_are_not_trained_on_and_serve_as_held_out_rest(chat, write_jsonl):
    rows = [{"prompt": f"q{i}", "response": f"a{i}", "label": i % 2 == 0} for i in range(40)]
    config = DataConfig(path=write_jsonl(rows), heldout_frac=0.5)
    data = load_prompts(config, chat)
    roles = [{r.role for p in part for r in p.responses} for part in (data.train, data.heldout, data.heldout_rest)]
    assert roles == [{Role.NEGATIVE}, {Role.NEGATIVE}, {Role.POSITIVE}]
    assert len(data.heldout) + len(data.heldout_rest) == 20
    assert len(data.train) + data.num_lacking_role == 20


@pytest.mark.parametrize("limit", [None, 20])
def test_every_method_sees_the_same_held_out_prompts(limit, chat, write_jsonl):
    rows = [{"prompt": f"q{i}", "response": f"a{i}", "label": i % 3 == 0} for i in range(40)]
    config = DataConfig(path=write_jsonl(rows), heldout_frac=0.5, limit=limit)
    d2o, sft = (load_prompts(config, chat, needs={role}) for role in (Role.NEGATIVE, Role.POSITIVE))
    assert texts(d2o.heldout) == texts(sft.heldout_rest)
    assert texts(sft.heldout) == texts(d2o.heldout_rest)
    assert len(d2o.heldout) + len(sft.heldout) == (limit or 40) / 2


def test_a_method_that_needs_pairs_gets_prompts_with_both_roles_and_the_others_are_named(chat, write_jsonl, caplog):
    rows = [{"prompt": "both", "response": "a", "label": True}, {"prompt": "both", "response": "b", "label": False}]
    rows += [{"prompt": "one", "response": "b", "label": False}]
    config = DataConfig(path=write_jsonl(rows), heldout_frac=0.0)
    data = load_prompts(config, chat, needs={Role.NEGATIVE, Role.POSITIVE})
    assert texts(data.train) == {"both"}
    assert data.num_lacking_role == 1
    assert data.left_out.startswith("1 more prompts lack a good answer (column `chosen`, or `response` with")
    assert data.left_out in caplog.text
    assert load_prompts(config, chat, needs={Role.NEGATIVE}).left_out is None


def test_broken_rows_stop_a_run_unless_told_to_skip_and_count(chat, write_jsonl):
    path = write_jsonl([*negatives(range(10)), {"prompt": "x", "rejected": ""}])
    with pytest.raises(DataError, match="1 of 11 rows are broken"):
        load_prompts(DataConfig(path=path), chat)
    data = load_prompts(DataConfig(path=path, on_bad_row="skip"), chat)
    assert len(data.train) + len(data.heldout) == 10
    assert sum(data.report.problem_counts.values()) == 1


def test_a_held_out_file_takes_its_prompts_from_train_and_ids_stay_unique(chat, write_jsonl):
    train, heldout = write_jsonl(negatives(range(10))), write_jsonl(negatives(range(7, 12)), "heldout.jsonl")
    data = load_prompts(DataConfig(path=train, heldout_path=heldout), chat)
    assert texts(data.train) == {f"question {i}" for i in range(7)}
    assert texts(data.heldout) == {f"question {i}" for i in range(7, 12)}
    assert data.num_also_heldout == 3
    assert data.heldout_report.num_prompts == 5
    ids = [prompt.prompt_id for prompt in (*data.train, *data.heldout)]
    assert len(set(ids)) == len(ids)


def test_a_limit_bounds_train_and_held_out_together_and_keeps_the_same_first_ones(chat, write_jsonl):
    path = write_jsonl(negatives(range(40)))
    full = load_prompts(DataConfig(path=path, heldout_frac=0.25), chat)
    part = load_prompts(DataConfig(path=path, heldout_frac=0.25, limit=8), chat)
    assert part.train == full.train[:6]
    assert part.heldout == full.heldout[:2]


@pytest.mark.parametrize("settings", [{"heldout_frac": 1.0}, {"limit": 1, "heldout_frac": 0.9}])
def test_nothing_left_to_train_on_is_refused_with_the_arithmetic(settings, chat, write_jsonl):
    with pytest.raises(DataError, match=r"leaves no prompt to train on.*heldout_frac"):
        load_prompts(DataConfig(path=write_jsonl(negatives(range(10))), **settings), chat)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 3), st.booleans(), st.sampled_from(["rude", "biased", ""])),
        min_size=1,
    ),
    seed=st.integers(0, 3),
)
def test_every_sound_answer_is_in_exactly_one_part_with_its_role(rows, seed, chat, write_jsonl):
    """Random files full of duplicates and contradictions: rows = answers kept + rows listed as broken."""
    path = write_jsonl(
        {"prompt": f"q{p}", "response": f"a{a}", "label": safe, "behaviour": b} for p, a, safe, b in rows
    )
    config = DataConfig(path=path, on_bad_row="skip", heldout_frac=0.3)
    try:
        data = load_prompts(config, chat, seed=seed, needs=())
    except DataError:
        return  # all openings were held out
    prompts = (*data.train, *data.heldout)
    answers = [(prompt.text, response.text) for prompt in prompts for response in prompt.responses]
    assert len(answers) == len(set(answers)) == len({(f"q{p}", f"a{a}") for p, a, _, _ in rows})
    assert len(answers) + len(data.report.problems) == len(rows)
