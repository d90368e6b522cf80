"""The card of a run: counts and versions, no texts."""

import json
import platform

import pytest

from negalign_ray import __version__
from negalign_ray.actors.card import data_card, versions, write_card
from negalign_ray.actors.plan import make_plan
from negalign_ray.settings import load_config


@pytest.fixture
def plan(tmp_path, toy_model):
    rows = [
        {"prompt": f"How do I water bed {index}?", "rejected": "Not at all.", "behaviour": "drought"}
        for index in range(20)
    ]
    (tmp_path / "garden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    overrides = [
        f"run.dir={tmp_path}", "run.name=demo", f"model.path={toy_model}", f"data.path={tmp_path / 'garden.jsonl'}",
        "data.on_bad_row=skip", "evaluation.enabled=false",
    ]  # fmt: skip
    return make_plan(load_config(preset="d2o", overrides=overrides))


def test_the_data_are_counted(plan):
    card = data_card(plan.data)
    assert (card["source"], card["num_rows"]) == ("garden.jsonl", 21)
    assert (card["num_train"], card["num_heldout"]) == (17, 3)
    assert card["total"] == {"prompts": 20, "negatives": 20, "positives": 0}
    assert card["by_behaviour"] == {"drought": card["total"]}
    assert card["problems"] == {"duplicate": 1}
    assert "water" not in json.dumps(card)


def test_versions_are_those_of_what_is_installed():
    found = versions()
    assert (found["negalign-ray"], found["python"]) == (__version__, platform.python_version())
    assert {"ray", "torch", "transformers"} <= found.keys()


def test_a_resumed_run_keeps_the_card_of_its_beginning(plan):
    write_card(plan)
    path = plan.config.run_dir / "card.json"
    first = json.loads(path.read_text())
    assert first["dtypes"] == {"samplers": plan.sampler_dtype, "learners": plan.learner_dtype}
    path.write_text(json.dumps(first | {"started": "earlier"}))
    write_card(plan)
    assert json.loads(path.read_text())["started"] == "earlier"
