"""Clusters in a few words, for planning without one.

2x(8cpu,64gb,1gpu)                         two nodes alike
1x(16cpu,64gb) + 4x(32cpu,256gb,8gpu:80gb) a head and four GPU nodes, 80 GB on each device
2x(8cpu,64gb,pool=fast)                    with a label
"""

import re

from negalign_ray.actors.packing import Node
from negalign_ray.errors import ConfigError
from negalign_ray.machine import list_gpus, machine_memory, num_cores

EXAMPLE = '--cluster "2x(8cpu,64gb,1gpu)"'
BYTES = {"gb": 10**9, "gib": 2**30, "tb": 10**12, "tib": 2**40}
MAX_NODES = 10_000
_GROUP = re.compile(r"\s*(?:(\d+)\s*[xX]\s*)?\(([^()]*)\)\s*")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)(?::(\d+(?:\.\d+)?)([a-z]+))?")


def parse_cluster(text: str) -> tuple[Node, ...]:
    """ConfigError that quotes the part which cannot be read."""
    nodes: list[Node] = []
    for part in text.split("+"):
        group = _GROUP.fullmatch(part)
        if group is None:
            raise ConfigError(f"--cluster {text!r}: {part.strip()!r} is not N x (CPUs, memory, GPUs), as in {EXAMPLE}.")
        num = int(group[1] or 1)
        if not 0 < num <= MAX_NODES:
            raise ConfigError(f"--cluster {text!r}: {num} nodes; give 1 to {MAX_NODES}.")
        nodes += [_parse_node(f"node-{len(nodes) + i}", group[2], text) for i in range(num)]
    return tuple(nodes)


def this_machine() -> tuple[Node, ...]:
    memory, gpus = machine_memory(), list_gpus()
    return (
        Node(
            "this machine",
            num_cores(),
            (1.0,) * len(gpus),
            memory_bytes=memory.total_bytes if memory else None,
            gpu_bytes=min((gpu.memory_bytes for gpu in gpus), default=0) or None,
        ),
    )


def _parse_node(name: str, items: str, text: str) -> Node:
    cpus, gpus = 0.0, 0
    memory_bytes = gpu_bytes = None
    labels: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in items.split(","))):
        key, equals, value = item.partition("=")
        found = _AMOUNT.fullmatch(item.lower())
        if equals and key and value:
            labels[key.strip()] = value.strip()
        elif found and found[2] in ("cpu", "cpus") and not found[3]:
            cpus = float(found[1])
        elif found and found[2] in BYTES and not found[3]:
            memory_bytes = round(float(found[1]) * BYTES[found[2]])
        elif found and found[2] in ("gpu", "gpus") and found[1].isdigit() and found[4] in (None, *BYTES):
            gpus = int(found[1])
            gpu_bytes = round(float(found[3]) * BYTES[found[4]]) if found[3] else None
        else:
            raise ConfigError(
                f"--cluster {text!r}: {item!r} is no amount of cpu, gb or gpu, and no label; see {EXAMPLE}."
            )
    if not cpus:
        raise ConfigError(f"--cluster {text!r}: ({items}) names no CPUs; write them as in {EXAMPLE}.")
    return Node(name, cpus, (1.0,) * gpus, memory_bytes=memory_bytes, gpu_bytes=gpu_bytes, labels=labels)
