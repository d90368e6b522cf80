"""The policy being trained: a causal LM under DeepSpeed ZeRO 0-3, one instance per rank.

The caller divides its losses by the GLOBAL number of groups and calls, on every rank the same number of times,

    logprobs --> loss --> backward(loss, is_last=False) ... backward(loss, is_last=True) --> step

DeepSpeed's own averaging over ranks and micro-batches is cancelled here, so sharding and accumulation cannot change the
loss: any ZeRO stage, number of ranks and micro-batch size makes the update of one process with one big batch.

# Axes: N = responses in a call, in the order (group 0 response 0, group 0 response 1, ...).
"""

import logging
import os
import resource
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from negalign_ray.config import LearnersConfig
from negalign_ray.data.collate import PackedRows, dummy_rows, pack_rows
from negalign_ray.engines.export import write_model_folder
from negalign_ray.engines.lr_schedule import lr_at
from negalign_ray.engines.training_state import Piece, read_state, write_state
from negalign_ray.engines.weight_change import Shard, WeightChange, padding_of
from negalign_ray.engines.zero_layout import pieces_of
from negalign_ray.models.device import Device, device_of
from negalign_ray.models.dtype import require_exact_accumulation
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.models.lora import inject_lora, lora_adapters, merged_weights
from negalign_ray.models.policy import ResponseLogprobs, log_complement, sum_by_response
from negalign_ray.records import Group

log = logging.getLogger(__name__)

REDUCE_BUCKET = 50_000_000  # elements; DeepSpeed's default of 5e8 would allocate 2 GB even for a tiny model


@dataclass(frozen=True, slots=True)
class StepStats:
    grad_norm: float  # global 2-norm before clipping; inf or nan when a gradient was not finite
    lr: float  # the learning rate that this step used


class DeepSpeedEngine:
    """Needs an initialised `torch.distributed` process group (Ray Train makes one), even for a single rank."""

    def __init__(
        self,
        model_path: Path | str,
        *,
        config: LearnersConfig,
        dtype: torch.dtype,
        seed: int,
        shares_device: bool = False,
    ):
        """`dtype` is the compute type (bfloat16 keeps float32 master weights and accumulates gradients in float32).
        `shares_device`: samplers that sleep meanwhile use this GPU between two steps.

        ModelError: see `device_of`, `load_causal_lm`, `inject_lora` and `ResponseLogprobs`. ConfigError: ZeRO 0 with
        bfloat16.
        """
        require_exact_accumulation(config.zero_stage, "float32" if dtype == torch.float32 else "bfloat16")
        self.config, self.dtype, self._shares_device = config, dtype, shares_device
        self.device = device_of("learners", gpus=config.gpus)
        deepspeed = _start_deepspeed(self.device)
        torch.manual_seed(seed)
        model = load_causal_lm(model_path, dtype)
        if config.lora is not None:
            inject_lora(model, config.lora)
        self.num_steps_done = 0
        self._adapters = lora_adapters(model)
        self._policy = ResponseLogprobs(
            model, chunk_tokens=config.logit_chunk_tokens, gradient_checkpointing=config.gradient_checkpointing
        ).train()
        trainable = [parameter for parameter in self._policy.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trainable,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the weights; about 5 times faster than the default on a CPU
        )
        self._engine, *_ = deepspeed.initialize(
            model=self._policy,
            optimizer=self._optimizer,
            config=_deepspeed_config(
                config, dtype, device=self.device, num_trainable=sum(p.numel() for p in trainable)
            ),
        )
        self._weight_change = WeightChange(self._owned_shards(), seed=seed)

    @property
    def hf_model(self) -> Any:
        """The wrapped causal LM (sharded under ZeRO-3)."""
        return self._policy.model

    def logprobs(self, groups: Sequence[Group]) -> Tensor:
        """Summed response log-probs [N] in nats, float32, with gradient. Collective under ZeRO-3.

        Without groups: an empty tensor that still depends on every parameter, so that an empty share can take part in
        `backward` with `logprobs([]).sum()`.
        """
        return self._forward(self._pack(groups))[: sum(len(group.responses) for group in groups)]

    def logprobs_and_complements(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """`logprobs`, and SUM_t log(1 - p(y_t)) of each response [N] (`log_complement`), both with gradient."""
        rows = self._pack(groups)
        logprob_P = self._forward(rows, per_token=True)
        num = sum(len(group.responses) for group in groups)
        return sum_by_response(logprob_P, rows)[:num], sum_by_response(log_complement(logprob_P), rows)[:num]

    def no_grad_token_logprobs(self, groups: Sequence[Group]) -> list[Tensor]:
        """Per-token log-probs, one [tokens] tensor per response, in order. Collective under ZeRO-3."""
        rows = self._pack(groups)
        with torch.no_grad():
            logprob_P = self._forward(rows, per_token=True)
        if not groups:
            return []
        order_P = torch.argsort(rows.response_P, stable=True)  # tokens of one response are in order within it
        lengths = [len(response.token_ids) for group in groups for response in group.responses]
        return list(logprob_P[order_P.to(logprob_P.device)].split(lengths))

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Accumulate gradients of one micro-batch. `loss` = this rank's losses, divided by the GLOBAL group count.

        `is_last` marks the step's last micro-batch, after which `step` must follow.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks; the loss is divided globally already, so undo it.
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)

    def step(self) -> StepStats:
        """Clip, update, clear gradients."""
        lr = lr_at(self.num_steps_done, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        unsharded = self.config.zero_stage == 0  # there, DeepSpeed clips without saying what the norm was
        grad_norm = self._unsharded_grad_norm() if unsharded else None
        self._engine.step()
        if grad_norm is None:
            grad_norm = self._engine.get_global_grad_norm()
        self.num_steps_done += 1
        return StepStats(grad_norm=float(grad_norm), lr=lr)

    def weight_change_sq(self) -> float:
        """This rank's part of ||W - W0||^2 over the trained weights (with LoRA: the adapters). No collective: the sum
        over the ranks is the square of the norm. Exact for small models, else from a sample (weight_change.py)."""
        part = self._weight_change.square()
        return part / dist.get_world_size() if self.config.zero_stage == 0 else part  # there, every rank has them all

    def gather_weights(self, dtype: torch.dtype | None = None) -> list[tuple[str, Tensor]]:
        """All weights on rank 0 as (Hugging Face name, CPU tensor), tied ones once; [] on other ranks. Collective.

        LoRA comes merged. Without `dtype`: the compute dtype. float32 from a bfloat16 policy reads the master weights;
        anything else the compute copy. Tensors may share memory with the live weights: copy them before `step`.
        """
        dtype = dtype or self.dtype
        from_masters = dtype == torch.float32 and self.dtype != torch.float32
        named = dict(self._full_tensors(from_masters=from_masters))
        if self._shares_device:  # samplers wake up as soon as rank 0 has published
            torch.cuda.empty_cache()
            dist.barrier()
        if dist.get_rank() != 0:
            return []
        return list(merged_weights(named, self._adapters, dtype))

    def export(
        self,
        path: Path | str,
        tokenizer_folder: Path | str,
        *,
        dtype: torch.dtype | None = None,
        chat_template: str | None = None,
        end_ids: Sequence[int] = (),
    ) -> None:
        """Write a Hugging Face folder (rank 0; atomic), tokenizer and chat template included. Collective.

        `chat_template` and `end_ids`: see `write_model_folder`. Without `dtype`: the compute dtype; with LoRA float32,
        which keeps all that was trained.
        """
        weights = self.gather_weights(dtype or (torch.float32 if self._adapters else None))
        if dist.get_rank() == 0:
            write_model_folder(
                Path(path),
                weights,
                model=self.hf_model,
                tokenizer_folder=Path(tokenizer_folder),
                chat_template=chat_template,
                end_ids=end_ids,
            )
        dist.barrier()

    def save(self, folder: Path) -> None:
        """Write all that training goes on from into `folder`, which rank 0 has made. Collective, after `step`."""
        is_sharded = self.config.zero_stage > 0 and dist.get_world_size() > 1
        write_state(
            folder,
            self._pieces(),
            self._optimizer,
            num_steps_done=self.num_steps_done,
            device=torch.device(self._engine.device),
            is_rank_0=dist.get_rank() == 0,
            add_up=dist.all_reduce if is_sharded else lambda tensor: None,
        )
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, under any ZeRO stage and number of ranks. Collective. CheckpointError."""
        named = dict(self.hf_model.named_parameters())
        zero = self._engine.optimizer
        is_stage_3 = self.config.zero_stage == 3
        if is_stage_3:
            zero.checkpoint_event_prologue()  # gathered parameters would keep their old values

        def set_copy(name: str, whole: Tensor) -> None:
            if not is_stage_3:  # every rank has the whole compute copy
                named[name].data.copy_(whole)

        self.num_steps_done = read_state(folder, self._pieces(), self._optimizer, set_copy=set_copy)
        if is_stage_3:  # as after an optimizer step: round the master weights, hand small parameters to every rank
            for number in range(len(zero.fp32_partitioned_groups_flat)):
                zero._reassign_or_swap_out_partitioned_parameters(number)
            zero.checkpoint_event_epilogue()
        dist.barrier()

    def peak_memory_bytes(self) -> int:
        """Largest memory so far: of the device's allocator, or the process's resident set on a CPU."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _pack(self, groups: Sequence[Group]) -> PackedRows:
        if not groups:
            return dummy_rows()
        return pack_rows(groups, max_row_tokens=self.config.max_row_tokens)

    def _forward(self, rows: PackedRows, *, per_token: bool = False) -> Tensor:
        return self._engine(rows.to(self._engine.device), per_token=per_token)

    def _unsharded_grad_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._policy.parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _pieces(self) -> list[Piece]:
        zero, stage = self._engine.optimizer, self.config.zero_stage
        return pieces_of(self.hf_model, self._optimizer, zero, stage=stage, rank=dist.get_rank())

    def _owned_shards(self) -> list[Shard]:
        """The float32 weights that this rank's optimizer updates in place."""
        if self.config.zero_stage < 3:
            return [Shard(weight) for group in self._optimizer.param_groups for weight in group["params"]]
        zero = self._engine.optimizer
        return [
            Shard(flat, padding_of([part.numel() for part in parts], paddings))
            for flat, parts, paddings in zip(
                zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups, zero.groups_padding, strict=True
            )
        ]

    def _full_tensors(self, *, from_masters: bool) -> Iterator[tuple[str, Tensor]]:
        """(name in the injected model, full tensor on the CPU); under ZeRO-3 rank 0 alone gets them."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        is_rank_0 = dist.get_rank() == 0
        for name, parameter in self.hf_model.named_parameters():
            if from_masters and parameter.requires_grad:
                tensor = safe_get_full_fp32_param(parameter)
                if is_rank_0:
                    yield name, tensor.cpu()
            elif self.config.zero_stage == 3:
                with GatheredParameters([parameter]):
                    if is_rank_0:  # a copy: the gathered storage is freed on exit
                        yield name, parameter.detach().to("cpu", copy=True)
            elif is_rank_0:
                yield name, parameter.detach().cpu()


def _deepspeed_config(
    config: LearnersConfig, dtype: torch.dtype, *, device: Device, num_trainable: int
) -> dict[str, Any]:
    """Accumulation is driven by hand (`set_gradient_accumulation_boundary`), hence 1 step and a made-up batch size."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",  # gradients of ranks are summed in float32, whatever the compute type
        "zero_allow_untested_optimizer": True,  # torch's AdamW: needs no compiled op
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": device == "cuda",
            "reduce_bucket_size": min(REDUCE_BUCKET, num_trainable),
            "stage3_prefetch_bucket_size": min(REDUCE_BUCKET, num_trainable),
        },
        "steps_per_print": 10**9,
    }


def _start_deepspeed(device: Device) -> Any:
    """Import lazily (seconds), without compiled ops, with its messages sent to `logging`, on our process group."""
    os.environ["DS_ACCELERATOR"] = device  # else it takes any device that it finds; read at its first import
    import deepspeed
    from deepspeed.utils import logger

    # Its shared-memory all-reduce would be built with g++ on first use; we reduce through torch.distributed alone.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    # DeepSpeed calls collectives that torch 2.13 renamed; one warning per rank and run that no user can act on.
    warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning, module="torch.distributed")
    os.environ.setdefault("LOCAL_RANK", "0")  # Ray Train and torchrun set it; a process started by hand has one device
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed
