"""What no file of this project may say: a scan of the code, the presets and the files for clusters."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted((ROOT / "negalign_ray").rglob("*.py"))
TEXTS = sorted(
    path
    for folder in ("negalign_ray/presets", "cluster_configs", "docker", "scripts")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix not in (".pyc",)
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Behind a NetworkPolicy that admits the KubeRay operator alone, which could not watch the job otherwise.
DASHBOARD_BEYOND_LOOPBACK = {"kuberay_job.yaml"}
RUNS_CODE = {
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "os.system",
}
MAY_LOAD_JOBLIB = {"sklearn_head.py"}  # with allow_pickle alone


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_every_dashboard_listens_on_loopback():
    found = 0
    for path in (*CODE, *TEXTS):
        for host in re.findall(r"""dashboard[-_]host["']?[=:]\s*["']?([\w.:]+)""", path.read_text()):
            found += 1
            assert host in LOOPBACK or path.name in DASHBOARD_BEYOND_LOOPBACK, f"{path}: {host}"
    assert found >= 8, "the pattern no longer finds them"


def test_the_one_dashboard_beyond_loopback_is_fenced_in():
    policy = (ROOT / "cluster_configs" / "kuberay_shared.yaml").read_text()
    assert "kind: NetworkPolicy" in policy


def test_every_cluster_is_started_with_a_token():
    for path in TEXTS:
        text = path.read_text()
        if "ray start" in text or "rayStartParams" in text:
            assert re.search(r"RAY_AUTH_MODE=token|authOptions|RAY_AUTH_MODE: token", text), path
        assert not re.search(r"RAY_AUTH_MODE[=:]\s*disabled", text), path


def test_no_code_that_comes_with_data_is_ever_run():
    for path in CODE:
        for name, call in calls(path):
            assert name not in RUNS_CODE, f"{path}:{call.lineno}: {name}"
            assert name != "joblib.load" or path.name in MAY_LOAD_JOBLIB, f"{path}:{call.lineno}"
            for keyword in call.keywords:
                if keyword.arg == "trust_remote_code":
                    assert ast.unparse(keyword.value) == "False", f"{path}:{call.lineno}"
                if keyword.arg == "weights_only":
                    assert ast.unparse(keyword.value) == "True", f"{path}:{call.lineno}"
            if name == "yaml.load":
                assert ast.unparse(call.args[0] if not call.keywords else call.keywords[0].value) == "_StrictLoader"


def test_no_shell_reads_what_the_program_is_given():
    for path in CODE:
        for name, call in calls(path):
            shell = next((each.value for each in call.keywords if each.arg == "shell"), None)
            assert shell is None, f"{path}:{call.lineno}: {name}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_file_holds_a_token_or_a_key(path):
    secret = re.search(r"(?i)(token|key|password|secret)[\"']?\s*[:=]\s*[\"']?[0-9a-f]{24,}", path.read_text())
    assert secret is None, secret
