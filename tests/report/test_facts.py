"""What was run: settings against defaults, the data card, and no passwords."""

import pytest

from negalign_ray.report.facts import changed_settings, facts_of, without_secrets
from negalign_ray.report.read import RunFiles, read_runs
from tests.report.runs import make_run


def test_only_settings_that_differ_from_the_defaults_of_their_method_are_listed(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    changed = {one.name: (one.value, one.default) for one in facts_of(run).changed}
    assert changed == {
        "data.path": ("garden.jsonl", "quickstart"),
        "method.alpha": ("0.01", "0.1"),
        "sampling.num_samples": ("2", "11"),
        "sampling.max_new_tokens": ("16", "64"),
        "learners.steps": ("60", "300"),
        "learners.groups_per_step": ("2", "16"),
        "scorers.heads[gate]": ("linear judges/two", "none"),
        "evaluation.heads[judge]": ("linear judges/one", "none"),
    }


def test_settings_of_another_version_are_shown_and_missing_ones_are_not():
    config = {"method": {"name": "of_tomorrow", "power": 2}, "learners": {"gone": 3}}
    assert [(one.name, one.value, one.default) for one in changed_settings(config)] == [
        ("method.power", "2", "null"),
        ("learners.gone", "3", "null"),
    ]


def test_the_card_becomes_pairs_for_reading(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    facts = facts_of(run)
    data, machine = dict(facts.data), dict(facts.machine)
    assert data["Prompts"] == "60 to train on, 20 held out"
    assert data["Broken rows"] == "10 duplicate"
    assert machine["Driver's machine"] == "4 cores, 16 GiB of memory"
    assert machine["ray"] == "2.60.0"
    assert facts.behaviours[0] == ("weeds", 27, 27, 4)
    assert facts.brief == ("d2o", "smollm2-135m-instruct", "garden.jsonl", "2026-05-03 10:20 UTC", "5 min")


def test_a_run_without_a_card_has_none(tmp_path):
    facts = facts_of(RunFiles(tmp_path, "demo"))
    assert (facts.data, facts.machine, facts.overview, facts.changed) == ((), (), (), ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pw@host/score?api_key=abc&top=1", "https://…@host/score?api_key=…&top=1"),
        ("s3://bucket/path?X-Signature=abc", "s3://bucket/path?X-Signature=…"),
        ("http://host/a@b?page=2", "http://host/a@b?page=2"),
    ],
)
def test_passwords_and_keys_in_addresses_are_not_shown(text, expected):
    assert without_secrets(text) == expected
