"""The vLLM engine of a sampler: token ids in, token ids and raw log-probs out, weights replaced in place and proved.

One engine lives in the process that makes it (no child processes), because a weight update then costs a copy and not a
transfer. The class is the same on CPU and CUDA; vLLM's platform decides.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from negalign_ray.config import SamplersConfig
from negalign_ray.engines.weights import WeightBundle, checksum_of, read_safetensors
from negalign_ray.errors import ModelError, RoleError, WeightUpdateError
from negalign_ray.records import Generation, SampleRequest, SamplingSpec

logger = logging.getLogger(__name__)

GIB = 1 << 30
MAX_SEED = 2**63 - 1  # vLLM takes signed 64-bit seeds
TORCH_DTYPE = {"bfloat16": torch.bfloat16, "float32": torch.float32}

MIN_BATCHED_TOKENS = 4096  # of one engine step; more would delay answers under way behind long prompts


class VllmEngine:
    """GenerationEngine (engines/protocols.py) on vLLM.

    `model_path` is a folder with safetensors; `stop_ids` are the token ids that end an answer (it keeps the one that
    ended it); `max_model_len` bounds context + answer. Raises ModelError when vLLM cannot start with the model, or when
    the loaded memory cannot be proved equal to the model's files.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        config: SamplersConfig,
        dtype: Literal["bfloat16", "float32"],
        max_model_len: int,
        seed: int,
        stop_ids: Sequence[int],
    ):
        if config.tensor_parallel_size != 1:
            raise ModelError(
                f"samplers.tensor_parallel_size={config.tensor_parallel_size}: this engine proves its weights in one "
                "process; set it to 1 and raise samplers.num to use more devices."
            )
        if not (Path(model_path) / "config.json").is_file():
            raise ModelError(f"{model_path} is not a model folder (no config.json); set model.path to one.")
        self._dtype, self._max_model_len = TORCH_DTYPE[dtype], max_model_len
        self._stop_ids = sorted(set(stop_ids))
        self._llm = _start(str(model_path), config=config, dtype=dtype, max_model_len=max_model_len, seed=seed)
        self._tokenizer = self._llm.get_tokenizer()
        self._model = self._llm.apply_model(lambda model: model)[0]
        self._version: int | None = None  # None: the weights that came with the model
        self._broken: str | None = None  # why these weights must not be used
        self._packed: list[tuple[str, torch.nn.Module]] = []  # CPU only: layers that multiply with a packed copy
        if next(self._model.parameters()).device.type == "cpu":
            from negalign_ray.engines.vllm_loader import pack, packable_layers

            self._packed = packable_layers(self._model)
            pack(self._packed)
        self._prove_start(model_path)

    def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """See the Protocol. Log-probs are the model's own (temperature 1, before top-p), whatever `spec` says.

        Raises RoleError when a context leaves no room for `spec.max_new_tokens`, and WeightUpdateError after a failed
        update: mixed weights never answer.
        """
        from vllm import SamplingParams, TokensPrompt

        if self._broken:
            raise WeightUpdateError(self._broken, role="sampler", weight_version=self._version)
        self._require_room(requests, spec)
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
                stop_token_ids=self._stop_ids,
                ignore_eos=True,  # the caller's stop ids are the only ones
                detokenize=False,  # once per answer below instead of once per token
            )
            for request in requests
        ]
        with self._without_compiler():
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [self._generation(output.outputs[0]) for output in outputs]

    def load_weights(self, bundle: WeightBundle) -> int:
        """See the Protocol. Raises WeightUpdateError, and answers no more calls, unless every byte is confirmed."""
        before, self._broken = self._version, f"the update to v{bundle.version} did not finish; replace this sampler."
        self._version = bundle.version
        try:
            with torch.inference_mode():
                self._model.load_weights(bundle.tensors())
            self._repack(seed=bundle.version)
        except (ValueError, KeyError, RuntimeError, AssertionError, AttributeError) as error:
            reason = f"vLLM could not load the bundle over v{before}: {type(error).__name__}: {error}"
            raise self._failure(bundle, reason) from error
        self._llm.reset_prefix_cache()
        loaded = self.checksum()
        if loaded != bundle.checksum:
            raise self._failure(
                bundle,
                f"loaded weights have checksum {loaded:016x}, but the learner announced {bundle.checksum:016x} for "
                f"v{bundle.version} (before: v{before}); the bundle is damaged or incomplete. Replace this sampler.",
            )
        self._broken = None
        return loaded

    def checksum(self) -> int:
        """See the Protocol: read from the parameters; packed copies were proved equal to them at the last update."""
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

    def _failure(self, bundle: WeightBundle, reason: str) -> WeightUpdateError:
        self._broken = reason
        return WeightUpdateError(reason, role="sampler", weight_version=bundle.version)

    def _prove_start(self, model_path: Path | str) -> None:
        """Loaded memory must have the files' checksum; otherwise no later confirmation would mean anything."""
        tied = bool(self._llm.llm_engine.model_config.hf_config.tie_word_embeddings)
        files = checksum_of(_cast(read_safetensors(model_path, tied=tied), self._dtype))
        if self.checksum() != files:
            raise ModelError(
                f"vLLM holds the weights of {model_path} in a form that cannot be checked against its files; "
                "set samplers.engine=transformers."
            )

    def _require_room(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> None:
        longest = max((len(request.context_ids) for request in requests), default=0)
        if longest + spec.max_new_tokens > self._max_model_len:
            raise RoleError(
                f"a context of {longest} tokens + sampling.max_new_tokens={spec.max_new_tokens} exceeds the engine's "
                f"{self._max_model_len} tokens; shorten data.max_prompt_tokens or the answers.",
                role="sampler",
                weight_version=self._version,
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


def _start(
    model_path: str, *, config: SamplersConfig, dtype: Literal["bfloat16", "float32"], max_model_len: int, seed: int
):
    """Start vLLM inside this process. Its environment variables must be set before its first import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # two one-thread samplers must not be pinned to one core
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
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

        memory: dict[str, Any]
        if current_platform.is_cpu():
            memory = {"kv_cache_memory_bytes": int(config.kv_cache_gib * GIB), "load_format": LOAD_FORMAT}
        else:
            memory = {"gpu_memory_utilization": config.gpu_memory_utilization, "load_format": "safetensors"}
        try:
            return LLM(
                model_path,
                dtype=dtype,
                seed=seed,
                max_model_len=max_model_len,
                max_num_seqs=config.max_num_seqs,
                enforce_eager=current_platform.is_cpu(),  # compiling costs minutes and gains little on a CPU
                distributed_executor_backend="uni",
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
