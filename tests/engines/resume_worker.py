"""One rank of the tests that save and load a DeepSpeed engine: every ZeRO stage in turn, so that it starts once."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from negalign_ray.config import LoRAConfig
from tests.engines.learner_worker import learners_config, train

FIRST, REST = slice(0, 2), slice(2, 4)
LORA = LoRAConfig(r=2, alpha=4, target_modules=("q_proj",))
CASES = [
    *((f"float32-{stage}", {"zero_stage": stage}, torch.float32) for stage in range(4)),
    *((f"bfloat16-{stage}", {"zero_stage": stage}, torch.bfloat16) for stage in (1, 2, 3)),
    *((f"lora-{stage}", {"zero_stage": stage, "lora": LORA}, torch.float32) for stage in (2, 3)),
]


def run_rank(rank: int, world_size: int, model: Path, out: Path) -> None:
    """For each case: two steps, save, two steps more; and the last two again by an engine that loaded what was saved.

    With two ranks, an engine also loads what one rank has saved before, and what another ZeRO stage has.
    """
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{out}/resume{world_size}", rank=rank, world_size=world_size)
    from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine

    results = {}
    for name, settings, dtype in CASES:
        config = learners_config(**settings)

        def goes_on_from(folder: Path, config=config, dtype=dtype):
            engine = DeepSpeedEngine(model, config=config, dtype=dtype, seed=0)
            engine.load(folder)
            loaded = {name: tensor.clone() for name, tensor in engine.gather_weights()}
            return engine.num_steps_done, loaded, train(engine, config, steps=REST)

        engine = DeepSpeedEngine(model, config=config, dtype=dtype, seed=0)
        train(engine, config, steps=FIRST)
        saved = {name: tensor.clone() for name, tensor in engine.gather_weights()}
        folder = out / f"{name}-world{world_size}"
        if rank == 0:
            folder.mkdir()
        engine.save(folder)
        results[name] = {
            "saved": saved,
            "straight": train(engine, config, steps=REST),
            "resumed": goes_on_from(folder),
        }
        if world_size == 2:
            results[name]["other ranks"] = goes_on_from(out / f"{name}-world1")
    if world_size == 2:
        config = learners_config(zero_stage=3)
        engine = DeepSpeedEngine(model, config=config, dtype=torch.float32, seed=0)
        engine.load(out / "float32-1-world2")
        results["other stage"] = train(engine, config, steps=REST)
    torch.save(results, out / f"resume{world_size}rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
