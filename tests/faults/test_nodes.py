"""A whole node is lost: its roles start again on another one, or the run ends with a typed error and is resumed."""

import re

import pytest

from negalign_ray.settings import dump_config
from tests.actors.conftest import read_rows
from tests.faults.harness import LONG_ANSWERS, both_engines, events, require_sound, run_alone

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
AWAY = "={role: away}"


@both_engines
def test_roles_of_a_lost_node_start_again_on_another_one(toy_config, tmp_path, report, engine):
    config = toy_config(
        *(*LONG_ANSWERS, "learners.steps=5", "samplers.num=2", "deadlines.sample_s=120", f"samplers.engine={engine}"),
        *(f"{section}.labels{AWAY}" for section in ("samplers", "scorers", "references")),
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    told = run_alone("lost_node", "sampler-0", tmp_path / "config.yaml")
    assert "error" not in told
    require_sound(config, told["summary"])
    assert "sampler" in told["replaced"]
    fault = "a node is lost, with samplers on it"
    report(fault, ended="goes on", seconds=told["seconds"], config=config, summary=told["summary"])


def test_a_lost_node_with_the_learner_ends_the_run_with_its_name_and_it_goes_on_elsewhere(toy_config, tmp_path, report):
    config = toy_config("learners.steps=5", "checkpoints.every=1", f"learners.labels{AWAY}")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    told = run_alone("lost_node", "learner-0", tmp_path / "config.yaml")
    assert told["role"] == "learner"
    assert re.match(r"learner\[0\]: (The actor died|its process cannot be reached)", told["error"])
    assert "--resume" in told["notes"][0]
    assert told["resumed_from"] >= 1
    require_sound(config, told["summary"])
    report("a node is lost, with the learner on it", ended="error, resumed", seconds=told["seconds"], config=config)


def test_an_elastic_group_that_loses_a_node_with_one_rank_goes_on_with_the_other_one_alone(
    toy_config, tmp_path, report
):
    """Each of the two nodes holds one rank, so that one is all there is room for afterwards."""
    config = toy_config(
        *("learners.steps=6", "learners.num=2", "learners.min_num=1", "learners.restarts=1", "checkpoints.every=1"),
        *("learners.cpus=1.5", f"learners.labels{AWAY}"),
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    told = run_alone("lost_node", "learner-1", tmp_path / "config.yaml")
    assert "error" not in told
    require_sound(config, told["summary"])
    of_ranks = [read_rows(config.run_dir / "samples" / f"rank-{rank}.jsonl") for rank in (0, 1)]
    steps_of_two = sorted({row["step"] for row in of_ranks[1]})
    assert steps_of_two[:2] == [1, 2]
    assert steps_of_two[-1] < 6
    alone = [row["order_id"] for row in of_ranks[0] if row["step"] > steps_of_two[-1]]
    assert len(alone) == 4 * (6 - steps_of_two[-1]), "all groups of a step"
    assert [row["role"] for row in events(config, "fault")] == ["learner"]
    assert len(events(config, "resume")) == 1
    fault = "a node is lost, with one of two learner ranks; learners.min_num=1"
    report(fault, ended="goes on", seconds=told["seconds"], config=config, summary=told["summary"])
