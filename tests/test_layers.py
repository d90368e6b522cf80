"""Imports in negalign_ray only go down: this test is the architecture diagram."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "negalign_ray"

LAYERS = [
    {"errors"},
    {"config", "records", "metrics", "events", "hub", "machine", "user_code"},  # 1: plain data, no torch
    {"settings", "methods", "data", "monitoring", "rewards", "trackers"},  # 2: functions over settings, tensors, text
    {"models"},  # 3: policies over packed rows
    {"engines", "loops", "evaluation"},  # 4: wrappers of heavy libraries; the two loops; measures
    {"report"},  # 5: a run directory as one page
    {"actors"},  # 6: Ray, and nothing but Ray
    {"bench", "doctor", "live", "planning"},  # 7: measures the roles; looks at machine or run; predicts a run
    {"cli"},  # 8: wires actors to the terminal
    {"api"},  # 9: the same from Python
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
LOWEST_LAYER = {"torch": 2, "transformers": 2}
ONLY_IN = {"ray": {"actors", "bench", "cli"}, "vllm": {"engines", "bench"}, "deepspeed": {"engines"}}


def imports_of(path: Path) -> set[str]:
    """Every absolute module name `path` imports, lazy imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} uses a relative import; write the full name."
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_only_go_down():
    wrong: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if unit == "__init__":
            continue
        assert unit in RANK, f"{path}: add {unit!r} to LAYERS, in the lowest layer that works."
        for name in imports_of(path):
            root, _, rest = name.partition(".")
            if root == "negalign_ray" and rest:
                target = rest.split(".")[0]
                if target != "__version__" and target != unit and RANK[target] >= RANK[unit]:
                    wrong.add(f"{unit} (layer {RANK[unit]}) imports {target} (layer {RANK[target]}) in {path}")
            elif RANK[unit] < LOWEST_LAYER.get(root, 0) or unit not in ONLY_IN.get(root, {unit}):
                wrong.add(f"{unit} must not import {root}: {path}")
    assert not wrong, "\n".join(sorted(wrong))


def test_a_conductor_starts_without_the_libraries_of_models_and_judges():
    """Each takes seconds to import, and the conductor needs none of them."""
    code = "import sys, negalign_ray.actors.conductor as _; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    heavy = {"transformers.models", "sklearn", "scipy.stats", "vllm", "deepspeed", "datasets"}
    assert heavy.isdisjoint(loaded.stdout.split())
