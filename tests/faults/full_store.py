"""A run on a cluster whose object store is small and already full; in a process of its own.

    python -m tests.faults.full_store spill CONFIG            the store can spill to the disk
    python -m tests.faults.full_store full CONFIG FOLDER      all of Ray's files are in FOLDER, which fills up meanwhile

The last line is what became of the run, as JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import negalign_ray.actors  # noqa: F401  # before Ray: token authentication

import ray  # isort: skip

from negalign_ray.actors.cluster import stop_ray
from negalign_ray.actors.run import train
from negalign_ray.config import Config
from negalign_ray.errors import RoleError
from negalign_ray.settings import load_config
from tests.faults.harness import Scene, sabotage

STORE_BYTES = 80 * 1024**2  # Ray takes no less than 75 MiB
BLOCK_BYTES = 8 * 1024**2


def start(**settings: Any) -> None:
    small = {"object_store_memory": STORE_BYTES, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", **small, **settings)


def spill(config: Config) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        start(object_spilling_directory=folder)
        kept = [ray.put(np.ones(BLOCK_BYTES, dtype=np.uint8)) for _ in range(2 * STORE_BYTES // BLOCK_BYTES)]
        summary = train(config)
        spilled = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        assert spilled >= STORE_BYTES, f"only {spilled} bytes were spilled: the store was not full"
        del kept
        stop_ray()
    return {"summary": summary}


def full(config: Config, disk: Path) -> dict:
    start(_temp_dir=str(disk))  # where Ray spills to, and what it falls back to
    kept = []

    def strike(scene: Scene) -> None:
        scene.wait_for_step(1)
        with (disk / "filler").open("wb") as file:
            try:
                while True:
                    file.write(b"x" * 65536)
            except OSError:
                pass
        for block_bytes in (BLOCK_BYTES, BLOCK_BYTES // 8, BLOCK_BYTES // 64):  # to the last gap
            try:
                while True:
                    kept.append(ray.put(np.ones(block_bytes, dtype=np.uint8)))
            except ray.exceptions.RayError:  # the store takes nothing more of this size
                continue

    try:
        with sabotage(config, strike) as saboteur:
            train(config)
    except RoleError as error:
        return {"role": error.role, "error": str(error), "seconds": saboteur.seconds_since()}
    finally:
        stop_ray()
    return {"role": "none", "error": "the run ended well", "seconds": 0.0}


def main() -> None:
    case, file, *more = sys.argv[1:]
    config = load_config(file=Path(file))
    began_s = time.monotonic()
    told = spill(config) if case == "spill" else full(config, Path(more[0]))
    print(json.dumps(told | {"took_s": time.monotonic() - began_s}))


if __name__ == "__main__":
    main()
