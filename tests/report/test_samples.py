"""Which texts are embedded, and that nothing of them can be read in the file."""

import base64
import json
import random
import zlib

import pytest

from negalign_ray.report.read import read_runs
from negalign_ray.report.sample_files import MAX_CHARS, evenly, shortened
from negalign_ray.report.samples import pack_samples
from tests.report.runs import HOSTILE, groups, make_run, write_json_lines


@pytest.fixture
def path(tmp_path):
    return make_run(tmp_path / "demo")


def unpacked(samples):
    return json.loads(zlib.decompress(base64.b64decode(samples.data)))


def test_every_prompt_is_there_with_scores_of_both_sides(path):
    samples = pack_samples(read_runs([path]), max_samples=1000)
    content = unpacked(samples)
    assert (samples.evaluation.kept, samples.training.kept) == (24, 120)
    first = content["items"][1]
    assert first["prompt"] == "How do I keep bed 1 free of frost?"
    assert [(answer["role"], answer["scores"]) for answer in first["answers"]] == [
        ("before", {"judge": 0.41}),
        ("after", {"judge": 0.16}),
    ]
    group = content["items"][24]
    assert (group["kind"], group["step"], group["run"]) == ("training", 1, 0)
    assert group["answers"][1] == {
        "role": "sample", "text": "Water row 0 at dawn.", "scores": {"gate": 0.2},
        "about": "instruction patient, version 0, 5 tokens",
    }  # fmt: skip
    assert content["heads"]["judge"] == {"direction": "harm", "threshold": 0.5}


def test_texts_of_the_over_refusal_set_have_no_scores(path):
    sides = json.loads((path / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (path / "samples" / "evaluation.jsonl").read_text().splitlines()]
    rows.append({"prompt": "How do I kill weeds?", "behaviour": None, "before": "Pull them.", "after": "Pull them."})
    write_json_lines(path / "samples" / "evaluation.jsonl", rows)
    for side in sides.values():
        side["overrefusal"] = {"texts": ["Pull them."], "scores": {}}
    (path / "evaluation.json").write_text(json.dumps(sides))
    items = unpacked(pack_samples(read_runs([path]), max_samples=25))["items"]
    assert items[0]["answers"][0]["scores"] == {"judge": 0.4}
    assert "scores" not in items[-1]["answers"][0]


@pytest.mark.parametrize("content", ["", '{"before": {}, "after": {}}', None])
def test_answers_of_an_evaluation_without_scores_are_shown_without(path, content):
    if content is None:  # of another evaluation than the texts
        sides = json.loads((path / "evaluation.json").read_text())
        sides["after"]["harmful"]["texts"][3] = "another text"
        content = json.dumps(sides)
    (path / "evaluation.json").write_text(content)
    items = unpacked(pack_samples(read_runs([path]), max_samples=24))["items"]
    assert len(items) == 24
    assert not any("scores" in answer for item in items for answer in item["answers"])


def test_too_many_are_thinned_evenly_and_counted(path):
    write_json_lines(path / "samples" / "rank-1.jsonl", groups(60, rank=1))
    samples = pack_samples(read_runs([path]), max_samples=42)
    items = unpacked(samples)["items"]
    assert (samples.evaluation.kept, samples.evaluation.whole) == (24, 24)
    assert (samples.training.kept, samples.training.whole) == (18, 180)
    trained = [item for item in items if item["kind"] == "training"]
    assert sum("Rank 1" in item["prompt"] for item in trained) == 6, "a third, as rank 1 trained on a third"
    assert (trained[0]["step"], trained[-1]["step"]) == (1, 60)


def test_half_as_many_are_kept_until_they_fit(path):
    letters = random.Random(0)
    rows = [row | {"prompt": "".join(letters.choices("abcdefghijklmnop", k=1000))} for row in groups(64)]
    write_json_lines(path / "samples" / "rank-0.jsonl", rows)
    samples = pack_samples(read_runs([path]), max_samples=88, max_bytes=10_000)
    assert len(samples.data) <= 10_000
    assert (samples.evaluation.kept, samples.training.kept) == (22, 0), "88, 44, 22; the evaluated ones first"


def test_none_are_embedded_when_none_are_wanted(path):
    samples = pack_samples(read_runs([path]), max_samples=0)
    assert samples.is_empty
    assert samples.evaluation.whole == 24


def test_prompts_that_several_runs_answered_stand_side_by_side(tmp_path):
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", after=0.3)])
    items = [item for item in unpacked(pack_samples(runs, max_samples=1000))["items"] if item["kind"] == "evaluation"]
    assert len(items) == 24
    assert [(answer["role"], answer["run"], answer["scores"]["judge"]) for answer in items[1]["answers"]] == [
        ("before", 0, 0.41),
        ("after", 0, 0.16),
        ("after", 1, 0.31),
    ]


def test_torn_and_foreign_lines_are_passed_over(path):
    with (path / "samples" / "rank-0.jsonl").open("a") as file:
        file.write('nonsense\n"text"\n{"step": 61, "responses": [')
    samples = pack_samples(read_runs([path]), max_samples=1000)
    assert samples.training.kept == 120


def test_long_texts_are_cut_and_say_by_how_much():
    assert shortened("a" * (MAX_CHARS + 7)) == "a" * MAX_CHARS + " … [7 more characters]"


def test_even_choices_hold_both_ends():
    assert evenly(9, 3) == [0, 4, 8]
    assert evenly(3, 9) == [0, 1, 2]
    assert evenly(9, 1) == [0]
    assert evenly(9, 0) == []


def test_half_a_character_does_not_stop_the_report(path):
    rows = groups(1)
    rows[0]["prompt"] = "half \ud83d"
    write_json_lines(path / "samples" / "rank-0.jsonl", rows)
    items = unpacked(pack_samples(read_runs([path]), max_samples=1000))["items"]
    assert items[-1]["prompt"] == "half ?"


def test_no_text_can_be_read_in_the_packed_form(path):
    assert HOSTILE not in pack_samples(read_runs([path]), max_samples=1000).data
