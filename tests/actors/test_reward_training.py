"""`train-reward` on real Ray workers: the whole command, more ranks, and refusals before anything starts."""

import json

import pytest
from transformers import AutoTokenizer, BertModel
from typer.testing import CliRunner

from negalign_ray.actors.reward_plan import make_reward_plan
from negalign_ray.actors.reward_training import train_rank, train_reward
from negalign_ray.cli import app
from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, DataError, NonFiniteError, StallError
from negalign_ray.rewards import build_head, check_head
from negalign_ray.rewards.reward_card import CARD_FILE, read_card
from negalign_ray.settings import load_reward_config
from tests.rewards.backbones import make_bert, toy_rows

QUICK = (
    "learners.cpus=0.1",
    "learners.threads=1",
    "learners.prompts_per_step=8",
    "learners.lr=1e-3",
    "learners.head_lr=1e-2",
    "learners.epochs=8",
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def write(tmp_path):
    def write_rows(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


def configure(folder, *overrides):
    return load_reward_config(preset="reward", overrides=[*QUICK, f"model.path={folder}", *overrides])


def scores(out, pairs, **settings):
    config = HeadConfig(name="reward", kind="reward_model", target=str(out), **settings)
    check_head(config)
    return build_head(config).score(pairs)


PAIRS = [
    ("question 200", "you fool 200"),
    ("question 200", "good idea, of course 200"),
    ("question 7", "go away, fool"),
]


# Before Ray


def test_the_share_that_is_kept_out_and_the_held_out_prompts_are_disjoint(bert, write, tmp_path):
    plan = make_reward_plan(configure(bert, "data.frac=0.5"), data=write(toy_rows()), out=tmp_path / "out")
    sides = [{row[0] for unit in units for row in unit.rows} for units in (plan.training, plan.heldout)]
    sides.append({prompt.text for prompt in plan.rest})
    assert [len(side) for side in sides] == [24, 6, 30]
    assert len(set.union(*sides)) == 60
    assert {unit.behaviour for unit in plan.heldout} == {"rude", "dismissive"}
    assert plan.data_card["num_negative_answers"] == 30
    assert not (tmp_path / "out").exists(), "a plan writes nothing"


def test_the_fingerprint_depends_on_what_is_learned_from_and_not_on_its_order(bert, write, tmp_path):
    def fingerprint(rows):
        plan = make_reward_plan(configure(bert), data=write(rows), out=tmp_path / "out")
        return plan.data_card["sha256"]

    rows = toy_rows()
    assert fingerprint(rows) == fingerprint(rows[::-1])
    assert fingerprint(rows) != fingerprint(rows[:-2])


def test_a_head_may_have_a_file_of_its_own_and_shared_prompts_stay_on_one_side(bert, write, tmp_path):
    helpful = [
        {"prompt": f"question {number}", "chosen": f"a full answer {number}", "rejected": f"hm {number}"}
        for number in range(0, 120, 2)
    ]
    own = write(helpful, "help.jsonl")
    heads = f"heads=[{{name: harm}}, {{name: help, direction: help, objective: pairwise, data: {own}}}]"
    plan = make_reward_plan(configure(bert, heads), data=write(toy_rows()), out=tmp_path / "out")
    sides = [{row[0] for unit in units for row in unit.rows} for units in (plan.training, plan.heldout)]
    assert not sides[0] & sides[1]
    both = next(unit for unit in plan.training if len(unit.rows) == 4)
    assert {item.head for item in both.items} == {0, 1}
    assert plan.data_card["sources"] == ["rows.jsonl", "help.jsonl"]


def test_rows_that_cannot_teach_a_head_are_refused_with_what_would(bert, write, tmp_path):
    out = tmp_path / "out"
    bad_only = [{"prompt": f"q {number}", "rejected": f"fool {number}"} for number in range(40)]
    with pytest.raises(DataError, match=r"rows.jsonl: there is no row|and there are \d+ bad, 0 good ones"):
        make_reward_plan(configure(bert), data=write([row | {"label": "unsafe", "response": row.pop("rejected")}
                                                      for row in bad_only]), out=out)  # fmt: skip
    apart = [row | {"prompt": f"{row['label']} {row['prompt']}"} for row in toy_rows()]
    with pytest.raises(
        DataError, match=r"heads\[0\] \('harm', pairwise\).*at least 10 pairs.*objective=classification"
    ):
        make_reward_plan(configure(bert, "heads=[{objective: pairwise}]"), data=write(apart), out=out)


def test_a_finished_folder_is_not_replaced_unasked(bert, write, tmp_path):
    (tmp_path / CARD_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"already holds a reward model.*--overwrite"):
        make_reward_plan(configure(bert), data=write(toy_rows()), out=tmp_path)
    make_reward_plan(configure(bert), data=write(toy_rows()), out=tmp_path, overwrite=True)


# On Ray


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_the_command_leaves_a_reward_model_a_report_and_the_rest(self, bert, write, tmp_path):
        out = tmp_path / "out"
        settings = [part for setting in (*QUICK, f"model.path={bert}") for part in ("--set", setting)]
        rows = toy_rows(90)
        result = CliRunner().invoke(app, ["train-reward", write(rows), str(out), "--frac", "0.8", *settings])
        assert result.exit_code == 0, result.output
        assert "Better than the length of the answer" in result.output
        assert f"kind: reward_model, target: {out}, direction: harm" in result.output
        assert {path.name for path in out.iterdir()} >= {
            "reward_card.json", "heads.safetensors", "backbone", "reward_report.json", "rest.jsonl", "calibration.png",
        }  # fmt: skip
        report = json.loads((out / "reward_report.json").read_text())
        assert report["heads"][0]["auroc"] > 0.9
        assert [entry["behaviour"] for entry in report["heads"][0]["by_behaviour"]] == ["dismissive", "rude"]
        card = read_card(out, head="reward")
        assert card.heads[0].figures["auroc"] == report["heads"][0]["auroc"]
        assert card.data["num_rest_prompts"] == 18
        assert len((out / "rest.jsonl").read_text().splitlines()) == 2 * 18
        rude, kind, _ = scores(out, PAIRS)
        assert rude > 0 > kind
        rude, kind, _ = scores(out, PAIRS, output="probability")
        assert 1 >= rude > 0.5 > kind >= 0

    @pytest.mark.slow
    @pytest.mark.parametrize("frozen", [False, True])
    def test_two_ranks_learn_what_one_learns(self, bert, write, tmp_path, frozen):
        data = write(toy_rows(31))  # 25 prompts a pass: the last batch has one, so one rank is idle
        settings = (f"model.frozen={frozen}", "learners.micro_batch_tokens=200")
        alone = make_reward_plan(configure(bert, *settings), data=data, out=tmp_path / "1")
        alone.out.mkdir()
        train_rank(alone, rank=0, world_size=1)
        train_reward(configure(bert, *settings, "learners.num=2"), data=data, out=tmp_path / "2")
        results = [scores(tmp_path / ranks, PAIRS) for ranks in ("1", "2")]
        assert results[0] == pytest.approx(results[1], abs=2e-3)
        assert max(map(abs, results[0])) > 0.1

    @pytest.mark.slow
    def test_what_ends_a_rank_reaches_the_caller_as_its_own_error(self, bert, write, tmp_path):
        broken = BertModel.from_pretrained(bert)
        broken.embeddings.word_embeddings.weight.data.fill_(float("nan"))
        broken.save_pretrained(tmp_path / "broken")
        AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "broken")
        with pytest.raises(NonFiniteError, match=r"reward_learner\[0\]: loss nan.*lower learners.lr"):
            train_reward(configure(tmp_path / "broken"), data=write(toy_rows()), out=tmp_path / "out")
        assert not (tmp_path / "out" / CARD_FILE).exists()

    def test_a_start_that_takes_too_long_is_a_typed_error(self, bert, write, tmp_path):
        with pytest.raises(StallError, match=r"deadlines.start_s=0.5 s"):
            train_reward(configure(bert, "deadlines.start_s=0.5"), data=write(toy_rows()), out=tmp_path / "out")
