"""What a plan that fits may still suffer from. Each function says it in one sentence with the setting to change."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import ceil

from negalign_ray.actors.memory import GIB, Memory, ModelSize
from negalign_ray.actors.packing import Node, Placement, Seating
from negalign_ray.actors.plan import Plan
from negalign_ray.config import OBJECT_STORE_BYTES

NEVER_ONLINE = 1_000_000  # sampling.online_from_step of presets whose samples are meant to be the initial model's


def memory_warnings(
    places: Sequence[Placement], memory: Mapping[str, Memory], seating: Seating, nodes: Sequence[Node]
) -> Iterator[str]:
    """Nodes and devices that hold less than the actors on them need."""
    gpus = {place.role: place.gpus for place in places}
    for index, node in enumerate(nodes):
        here = seating.on(index)
        host = sum(memory[seat.role].host(gpus=gpus[seat.role]) for seat in here)
        if node.memory_bytes is not None and host > node.memory_bytes:
            yield (
                f"{node.name} has {node.memory_bytes / GIB:.1f} GiB of memory and its actors need about "
                f"{host / GIB:.1f} GiB; use more or larger nodes, fewer actors, or less learners.micro_batch_tokens."
            )
        on_device: dict[int, int] = defaultdict(int)
        for seat in here:
            for device in seat.gpus:
                on_device[device] += memory[seat.role].device(gpus=gpus[seat.role])
        for device, needed in sorted(on_device.items()):
            if node.gpu_bytes is not None and needed > node.gpu_bytes:
                yield (
                    f"GPU {device} of {node.name} has {node.gpu_bytes / GIB:.1f} GiB and the actors on it need about "
                    f"{needed / GIB:.1f} GiB; lower samplers.gpu_memory_utilization, raise learners.zero_stage, or "
                    "give roles devices of their own."
                )


def kv_cache_warnings(plan: Plan, size: ModelSize, memory: Memory) -> Iterator[str]:
    """A cache too small for all sequences at once makes vLLM run some again."""
    config = plan.config
    per_token = ceil(size.kv_bytes_per_token(plan.sampler_dtype) / config.samplers.tensor_parallel_size)
    if not plan.num_samples or not per_token or not memory.kv_cache or config.samplers.engine != "vllm":
        return
    longest = plan.max_model_len
    fitting = memory.kv_cache // (per_token * longest)
    per_call = config.samplers.orders_per_call or -(-config.learners.groups_per_step // config.samplers.num)
    wanted = min(config.samplers.max_num_seqs, per_call * plan.num_samples)
    if fitting < wanted:
        more = "samplers.gpu_memory_utilization" if config.samplers.gpus else "samplers.kv_cache_gib"
        yield (
            f"a sampler's KV cache of {memory.kv_cache / GIB:.1f} GiB holds {fitting} sequences of {longest} tokens, "
            f"and {wanted} run at once; raise {more}, or lower samplers.max_num_seqs."
        )


def device_warnings(plan: Plan) -> Iterator[str]:
    learners = plan.config.learners
    if 0 < learners.gpus < 1 and learners.num > 1:
        yield (
            f"learners.gpus={learners.gpus:g} lets two of the {learners.num} ranks share a device, which NCCL refuses; "
            "set learners.gpus=1."
        )


def object_store_warnings(memory: Memory) -> Iterator[str]:
    """Of a cluster that the run starts itself."""
    if 2 * memory.weights > OBJECT_STORE_BYTES:
        yield (
            f"two versions of the weights ({2 * memory.weights / GIB:.1f} GiB) exceed the object store of "
            f"{OBJECT_STORE_BYTES / GIB:.0f} GiB that a run starts, and spill to disk; start a cluster with more "
            "(`ray start --head --object-store-memory BYTES`) and name it by RAY_ADDRESS."
        )


def online_warnings(plan: Plan) -> Iterator[str]:
    """A run too short to reach T0, as a few steps of a preset with the paper's values are."""
    start, steps = plan.config.sampling.online_from_step, plan.config.learners.steps
    if plan.num_samples and steps <= start < NEVER_ONLINE:
        yield (
            f"sampling.online_from_step={start} is not below learners.steps={steps}: all answers come from the initial "
            f"model, none from the one in training; set it to 0, or to {NEVER_ONLINE} where that is meant."
        )
