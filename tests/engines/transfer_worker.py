"""A sampler's engine in a process of its own, on a GPU of its own or a shared one; it is asked through a pipe."""

import multiprocessing as mp
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_MODEL_LEN = 96


def serve(pipe: Any, devices: str, model: str, settings: dict[str, Any]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    from negalign_ray.config import SamplersConfig
    from negalign_ray.engines.vllm_engine import VllmEngine

    engine = VllmEngine(
        model,
        config=SamplersConfig(gpu_memory_utilization=0.3, **settings),
        dtype="bfloat16",
        max_model_len=MAX_MODEL_LEN,
        seed=0,
        stop_ids=(2,),
    )
    pipe.send("ready")
    while True:
        method, *arguments = pipe.recv()
        try:
            pipe.send(getattr(engine, method)(*arguments))
        except Exception as error:
            pipe.send(error)


class RemoteEngine:
    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def ask(self, method: str, *arguments: Any) -> None:
        self._pipe.send((method, *arguments))

    def answer(self) -> Any:
        assert self._pipe.poll(120), "no answer within 120 s"
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def __call__(self, method: str, *arguments: Any) -> Any:
        self.ask(method, *arguments)
        return self.answer()


@contextmanager
def engine_on(devices: str, model: Path, **settings: Any) -> Iterator[RemoteEngine]:
    """`devices` as in CUDA_VISIBLE_DEVICES."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, devices, str(model), settings))  # may have children: TP
    process.start()
    try:
        assert ours.poll(300), "vLLM did not start within 300 s"
        assert ours.recv() == "ready"
        yield RemoteEngine(ours)
    finally:
        process.kill()
        process.join()
