"""What tensor parallelism, sleep and the ways of weights ask of the devices: refused here, before anything starts.

| setting | engine | samplers.gpus | learners | sampling |
|---|---|---|---|---|
| tensor_parallel_size > 1 | vllm | 1 (of each worker) | any | any |
| weight_transfer=nccl | vllm | whole devices | whole devices | any |
| weight_transfer=ipc | vllm | a share | one rank, a share of the same device | any |
| sleep | vllm | a share | any | strictly on-policy from the first step |
"""

from negalign_ray.config import Config
from negalign_ray.errors import ConfigError


def check_devices(config: Config) -> None:
    """Raises ConfigError."""
    samplers = config.samplers
    if samplers.tensor_parallel_size > 1:
        _check_tensor_parallel(config)
    if samplers.weight_transfer == "nccl":
        _check_nccl(config)
    if samplers.weight_transfer == "ipc":
        _check_ipc(config)
    if samplers.sleep:
        _check_sleep(config)


def _check_tensor_parallel(config: Config) -> None:
    samplers = config.samplers
    if samplers.engine != "vllm" or samplers.gpus != 1:
        raise ConfigError(
            f"samplers.tensor_parallel_size={samplers.tensor_parallel_size}: vLLM splits a sampler over whole GPUs of "
            f"one node, but samplers.engine={samplers.engine} and samplers.gpus={samplers.gpus:g} (of each part); set "
            "them to vllm and 1, or set it to 1 and raise samplers.num to use more devices."
        )


def _check_nccl(config: Config) -> None:
    setting, otherwise = "samplers.weight_transfer=nccl", "samplers.weight_transfer=object_store"
    _require_vllm(config, setting, otherwise=otherwise)
    for section, gpus in (("samplers", config.samplers.gpus), ("learners", config.learners.gpus)):
        if gpus < 1:
            raise ConfigError(
                f"{setting} joins learners and samplers that have devices of their own, but {section}.gpus={gpus:g}; "
                f"set {section}.gpus=1, or {otherwise} (on a GPU that both share: ipc)."
            )


def _check_ipc(config: Config) -> None:
    samplers, learners = config.samplers, config.learners
    setting, otherwise = "samplers.weight_transfer=ipc", "samplers.weight_transfer=object_store"
    _require_vllm(config, setting, otherwise=otherwise)
    for section, gpus in (("samplers", samplers.gpus), ("learners", learners.gpus)):
        if not 0 < gpus < 1:
            raise ConfigError(
                f"{setting} works between processes that share one GPU, but {section}.gpus={gpus:g}; set a share such "
                f"as {section}.gpus=0.5, or {otherwise} (between GPUs: nccl)."
            )
    if learners.num > 1:
        raise ConfigError(
            f"{setting} hands over the weights within the device of learner rank 0, but learners.num={learners.num}; "
            f"set learners.num=1, or {otherwise}."
        )
    num = samplers.autoscale.max if samplers.autoscale else samplers.num
    total = learners.gpus + num * samplers.gpus
    if total > 1 + 1e-6:
        raise ConfigError(
            f"{setting}: learners.gpus={learners.gpus:g} and {num} sampler(s) of samplers.gpus={samplers.gpus:g} make "
            f"{total:g} GPUs, and all must lie on one; lower them, or {otherwise}."
        )


def _check_sleep(config: Config) -> None:
    samplers, sampling = config.samplers, config.sampling
    setting = "samplers.sleep=true"
    _require_vllm(config, setting, otherwise="samplers.sleep=false")
    if not 0 < samplers.gpus < 1:
        raise ConfigError(
            f"{setting} gives the memory of a shared GPU back while learners train, but samplers.gpus="
            f"{samplers.gpus:g}; set a share such as samplers.gpus=0.5, or samplers.sleep=false."
        )
    busy = {
        "sampling.schedule": (sampling.schedule, "online"),
        "sampling.staleness": (sampling.staleness, 0),
        "sampling.online_from_step": (sampling.online_from_step, 0),
        "evaluation.every": (config.evaluation.every, 0),
    }
    for name, (value, wanted) in busy.items():
        if value != wanted:
            raise ConfigError(
                f"{setting}, but with {name}={value} samplers have work while learners train; set {name}={wanted}, or "
                "samplers.sleep=false."
            )


def _require_vllm(config: Config, setting: str, *, otherwise: str) -> None:
    samplers = config.samplers
    if samplers.engine != "vllm":
        raise ConfigError(f"{setting} needs samplers.engine=vllm, not {samplers.engine}; set that, or {otherwise}.")
    if samplers.gpus == 0:
        raise ConfigError(
            f"{setting} is for GPUs, but samplers.gpus=0; set {otherwise} on CPUs, where samplers.num uses more cores."
        )
