"""The conductor in Ray gives up what it held for steps that are over: its memory does not grow with the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "scripts/bench_conductor_in_ray.py"
STEPS, GROUPS = 30, 64


@pytest.mark.real
def test_groups_that_learners_had_are_freed():
    """Ray keeps small objects in the process that owns them, and leaks those that a learner let go of last."""
    sizes = ("--steps", str(STEPS), "--groups", str(GROUPS), "--samplers", "1")
    done = subprocess.run([sys.executable, SCRIPT, *sizes], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["orders"] == {"issued": STEPS * GROUPS, "trained": STEPS * GROUPS}
    first, _, last = told["objects_mib"]
    assert 0 < last <= 2 * first, "of 30 steps, those of three are there: two under way, one held"
    first, _, last = told["objects_referred_to"]
    assert last <= first
