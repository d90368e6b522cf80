"""docs/clusters.md names every file, and its commands exist, parse and fit."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from negalign_ray.settings import load_config
from tests.cluster_configs.nodes import CONFIGS, DOCKER, ROLES, ROOT
from tests.test_docs import blocks, parse

PAGE = ROOT / "docs" / "clusters.md"
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", PAGE.read_text(), re.MULTILINE))
ENVIRONMENTS = {
    "Two nodes on one machine": CONFIGS / "local_two_nodes.sh",
    "Docker Compose": DOCKER / "compose.yaml",
    "Slurm": CONFIGS / "slurm.sh",
    "Machines of your own": CONFIGS / "on_premise.yaml",
    "AWS": CONFIGS / "aws.yaml",
    "Google Cloud": CONFIGS / "gcp.yaml",
    "Kubernetes: a cluster that stays up": CONFIGS / "kuberay_cluster.yaml",
    "Kubernetes: a cluster for one run": CONFIGS / "kuberay_job.yaml",
}
TRAIN = re.compile(r"negalign-ray train --.*")


def shell(text: str) -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize(("title", "file"), ENVIRONMENTS.items())
def test_each_environment_has_a_section_with_three_commands_that_use_its_file(title, file):
    commands = shell(SECTIONS[title])
    assert len(commands) == 3
    name = str(file.relative_to(ROOT))
    assert any(name in command for command in commands)
    assert f"(../{name})" in SECTIONS[title]


def test_every_file_is_on_the_page():
    for path in [*CONFIGS.iterdir(), *DOCKER.iterdir()]:
        assert f"(../{path.relative_to(ROOT)})" in PAGE.read_text(), path.name


def trainings() -> list[str]:
    [job] = yaml.safe_load_all((CONFIGS / "kuberay_job.yaml").read_text())
    headers = "\n".join(path.read_text() for path in [*CONFIGS.glob("*.sh"), DOCKER / "compose.yaml"])
    everywhere = "\n".join([PAGE.read_text(), headers])
    slurm = [f"negalign-ray train {rest}" for rest in re.findall(r"slurm\.sh (--preset .*)", everywhere)]
    written = [line.rstrip('"') for line in TRAIN.findall(everywhere) if "$" not in line]
    return [job["spec"]["entrypoint"], *slurm, *written]


def test_every_training_command_parses_and_its_files_and_settings_hold():
    for line in trainings():
        options = parse(line).options
        named = options["config"]
        file = CONFIGS / named.name if named else None
        assert named is None or named.parent.name == "cluster_configs", line
        load_config(preset=options["preset"], file=file, overrides=options["overrides"] or [])


def test_files_that_commands_name_exist():
    for line in "\n".join(blocks(PAGE, "bash")).splitlines():
        for word in shlex.split(line):
            if word.startswith(("cluster_configs/", "docker/")):
                assert (ROOT / word).is_file(), word


def test_the_roles_of_the_table_are_those_of_the_files():
    for name in ("roles.yaml", "roles_gpu.yaml"):
        config = load_config(preset="d2o", file=CONFIGS / name)
        row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| [{name}]"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        for cell, section in zip(cells, (config.samplers, config.learners, config.references), strict=True):
            label = section.labels.get("role")
            assert cell == (f"`role={label}`" if label else "anywhere") + (
                f", {section.gpus:g} GPU" * (section.gpus > 0)
            )
            assert label in (None, *ROLES)


def test_the_page_is_linked_from_the_readme():
    assert "[docs/clusters.md](docs/clusters.md)" in Path(ROOT / "README.md").read_text()
