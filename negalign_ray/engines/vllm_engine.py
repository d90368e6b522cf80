"""The vLLM engine of a sampler: token ids in, token ids and raw log-probs out, weights replaced in place and proved.

One engine lives in the process that makes it (no child processes), because a weight update then costs a copy and not a
transfer; only tensor parallelism puts a process on each GPU (shards.py). The class is the same on CPU and CUDA; vLLM's
platform decides.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negalign_ray.config import SamplersConfig
from negalign_ray.engines.generation import MAX_SEED, CheckedEngine
from negalign_ray.engines.shards import Shards
from negalign_ray.engines.weight_transfer import Parcel, receive
from negalign_ray.engines.weights import Announced, WeightBundle, checksum_of, confirmed, read_safetensors
from negalign_ray.errors import ModelError, WeightUpdateError
from negalign_ray.models.dtype import ComputeDtype
from negalign_ray.records import Generation, SampleRequest, SamplingSpec

logger = logging.getLogger(__name__)

GIB = 1 << 30

MIN_BATCHED_TOKENS = 4096  # of one engine step; more would delay answers under way behind long prompts


class VllmEngine(CheckedEngine):
    """GenerationEngine (engines/protocols.py) on vLLM.

    Raises ModelError when vLLM cannot start with the model, or when the loaded memory cannot be proved equal to the
    model's files.
    """

    def _start(self, model_path: Path, config: SamplersConfig, *, dtype: ComputeDtype, seed: int) -> None:
        if config.tensor_parallel_size > 1 and config.gpus != 1:
            raise ModelError(
                f"samplers.tensor_parallel_size={config.tensor_parallel_size} is for GPUs, with samplers.gpus=1; set "
                "it to 1 and raise samplers.num to use more cores or devices."
            )
        if not (model_path / "config.json").is_file():
            raise ModelError(f"{model_path} is not a model folder (no config.json); set model.path to one.")
        self._llm = _start_vllm(
            str(model_path), config=config, dtype=dtype, max_model_len=self._max_model_len, seed=seed
        )
        self._tokenizer = self._llm.get_tokenizer()
        self._asleep: set[str] = set()  # what `sleep` gave up and nobody has asked for since: "weights", "kv_cache"
        self._packed: list[tuple[str, torch.nn.Module]] = []  # CPU only: layers that multiply with a packed copy
        self._shards = Shards(self._llm, self._dtype) if config.tensor_parallel_size > 1 else None
        if self._shards is None:
            self._model = self._llm.apply_model(lambda model: model)[0]
            self._pack()
        self._prove_start(model_path)

    def _pack(self) -> None:
        if next(self._model.parameters()).device.type == "cpu":
            from negalign_ray.engines.vllm_loader import pack, packable_layers

            self._packed = packable_layers(self._model)
            pack(self._packed)

    def _answer(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        from vllm import SamplingParams, TokensPrompt

        self._wake("kv_cache")
        # A cache filled by an earlier call changes the shapes of the prefill, hence the last bits, hence now and then a
        # token. Answers to the same call must not depend on what was asked before; within the call prefixes are shared.
        self._llm.reset_prefix_cache()
        prompts = [TokensPrompt(prompt_token_ids=list(request.context_ids)) for request in requests]
        params = [
            SamplingParams(
                temperature=spec.temperature,
                top_p=spec.top_p,
                max_tokens=spec.max_new_tokens,
                seed=request.seed & MAX_SEED,
                logprobs=0,  # the sampled token's only
                flat_logprobs=True,
                stop_token_ids=sorted(self._stop_ids),
                ignore_eos=True,  # the caller's stop ids are the only ones
                detokenize=False,  # once per answer below instead of once per token
            )
            for request in requests
        ]
        with self._without_compiler():
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [self._generation(output.outputs[0]) for output in outputs]

    def _load(self, bundle: WeightBundle, *, before: int | None) -> int:
        load = self._load_here if self._shards is None else self._shards.load
        return self._confirm_new(bundle, lambda: load(bundle), before=before)

    def _load_here(self, bundle: WeightBundle) -> None:
        with torch.inference_mode():
            self._model.load_weights(bundle.tensors())
        self._repack(seed=bundle.version)

    def _receive(self, parcel: Parcel, *, before: int | None) -> int:
        return self._confirm_new(parcel, lambda: receive(self._llm, parcel), before=before)

    def _confirm_new(self, new: Announced, load: Callable[[], None], *, before: int | None) -> int:
        self._wake("weights")
        try:
            load()
        except (ValueError, KeyError, RuntimeError, AssertionError, AttributeError) as error:
            reason = f"vLLM could not load the bundle over v{before}: {type(error).__name__}: {error}"
            raise WeightUpdateError(reason, role="sampler", weight_version=new.version) from error
        self._llm.reset_prefix_cache()
        return confirmed(self.checksum(), new, role="sampler", before=before)

    def _fall_asleep(self) -> None:
        if not self._asleep:
            # Level 2 keeps no copy of the weights in host memory: a strictly on-policy sampler gets new ones anyway.
            self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, what: str) -> None:
        if what in self._asleep:
            self._llm.wake_up(tags=[what])
            self._asleep.remove(what)

    def checksum(self) -> int:
        """See the Protocol: read from the parameters; packed copies were proved equal to them at the last update.

        WeightUpdateError when workers that should hold the same weights do not.
        """
        if self._shards is not None:
            return self._shards.checksum()
        return checksum_of((name, p.to(self._dtype)) for name, p in self._model.named_parameters())

    def _repack(self, *, seed: int) -> None:
        if not self._packed:
            return
        from negalign_ray.engines.vllm_loader import pack, stale_layers

        pack(self._packed)
        if stale := stale_layers(self._packed, seed=seed):
            raise RuntimeError(f"packed copies of {stale} do not hold the loaded weights")

    def _without_compiler(self) -> AbstractContextManager:
        """vLLM compiles one small function (log-prob ranks) at the first call: on a CPU that takes 5 s and a compiler,
        and saves 1 % of the sampling time."""
        return torch.compiler.set_stance("force_eager") if self._packed else nullcontext()

    def _prove_start(self, model_path: Path | str) -> None:
        """Loaded memory must have the files' checksum; otherwise no later confirmation would mean anything."""
        tied = bool(self._llm.llm_engine.model_config.hf_config.tie_word_embeddings)
        files = checksum_of(_cast(read_safetensors(model_path, tied=tied), self._dtype))
        try:
            is_proved = self.checksum() == files
        except WeightUpdateError:  # copies that should be equal are not
            is_proved = False
        if not is_proved:
            remedy = "samplers.tensor_parallel_size=1" if self._shards else "samplers.engine=transformers"
            raise ModelError(
                f"vLLM holds the weights of {model_path} in a form that cannot be checked against its files; "
                f"set {remedy}."
            )

    def _generation(self, output) -> Generation:
        token_ids = tuple(output.token_ids)
        return Generation(
            token_ids=token_ids,
            logprobs=tuple(output.logprobs.logprobs),
            finish_reason=output.finish_reason,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
        )


def _cast(named: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.to(dtype)) for name, tensor in named)


def _start_vllm(model_path: str, *, config: SamplersConfig, dtype: ComputeDtype, max_model_len: int, seed: int):
    """Start vLLM inside this process. Its environment variables must be set before its first import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # two one-thread samplers must not be pinned to one core
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    if config.tensor_parallel_size > 1:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # Ray's threads would not survive a fork
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    torch.set_num_threads(config.threads)  # before vLLM: its CPU worker replaces this function by one that does nothing
    with _kept_process_state():
        try:
            from vllm import LLM
        except ImportError as error:
            raise ModelError(
                f"vLLM cannot be imported ({error}); install negalign-ray[cpu] or [gpu], or set "
                "samplers.engine=transformers."
            ) from error
        from vllm.platforms import current_platform

        from negalign_ray.engines.vllm_loader import LOAD_FORMAT

        _require_platform(config, is_cpu=current_platform.is_cpu())
        memory: dict[str, Any]
        if current_platform.is_cpu():
            memory = {"kv_cache_memory_bytes": int(config.kv_cache_gib * GIB), "load_format": LOAD_FORMAT}
        else:
            memory = {
                "gpu_memory_utilization": config.gpu_memory_utilization,
                "load_format": "safetensors",
                "enable_sleep_mode": config.sleep,
            }
            if config.weight_transfer != "object_store":
                memory["weight_transfer_config"] = {"backend": config.weight_transfer}
        try:
            return LLM(
                model_path,
                dtype=dtype,
                seed=seed,
                max_model_len=max_model_len,
                max_num_seqs=config.max_num_seqs,
                enforce_eager=current_platform.is_cpu(),  # compiling costs minutes and gains little on a CPU
                distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else "uni",
                tensor_parallel_size=config.tensor_parallel_size,
                enable_prefix_caching=True,
                generation_config="vllm",  # the model folder must not add penalties or stop ids of its own
                logprobs_mode="raw_logprobs",
                use_tqdm_on_load=False,
                # A seeded request that is prefilled in parts rewinds its generator, which CPU generators cannot do
                # ("CPU Generator does not use offset"); so prompts are prefilled whole there.
                enable_chunked_prefill=not current_platform.is_cpu(),
                max_num_batched_tokens=max(max_model_len, MIN_BATCHED_TOKENS),
                **memory,
            )
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            raise ModelError(
                f"vLLM could not start with {model_path} (dtype {dtype}, max_model_len {max_model_len}, "
                f"samplers.kv_cache_gib={config.kv_cache_gib}, samplers.gpu_memory_utilization="
                f"{config.gpu_memory_utilization}): {error}. Lower the memory settings, or set "
                "samplers.engine=transformers."
            ) from error


def _require_platform(config: SamplersConfig, *, is_cpu: bool) -> None:
    """ModelError unless the installed vLLM computes on what the sampler reserved: one build knows one platform."""
    if is_cpu == (config.gpus == 0):
        return
    found, remedy = (
        ("vLLM is a build for CPUs", "install negalign-ray[gpu], or set samplers.gpus=0")
        if is_cpu
        else ("vLLM computes on the GPU", "set samplers.gpus (a share will do), or samplers.engine=transformers")
    )
    raise ModelError(f"samplers.gpus={config.gpus:g}, but the installed {found}; {remedy}.")


@contextmanager
def _kept_process_state():
    """Undo what starting vLLM does to the whole process: LD_PRELOAD for later children, and torch.set_num_threads."""
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
