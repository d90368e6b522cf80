"""Before a run: frozen copies of the policy read good and bad answers, and say which behaviour will be learned first.

prompts to train on --draw--> groups --waves--> readers (references.num) --states--> prediction --> diagnose.json
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from negalign_ray.actors.cluster import shared_cluster
from negalign_ray.actors.plan import with_absolute_paths
from negalign_ray.actors.processes import actor_options, open_log, start_actor, typed, wait_until_ready
from negalign_ray.config import Config
from negalign_ray.data.chat import load_chat
from negalign_ray.data.load import load_prompts
from negalign_ray.errors import StallError
from negalign_ray.evaluation.clouds import draw_clouds
from negalign_ray.evaluation.dynamics import prediction
from negalign_ray.models.dtype import resolve_dtype
from negalign_ray.models.packaged import resolve_model
from negalign_ray.records import Group, Role

FILE_NAME = "diagnose.json"
GROUPS_PER_CALL = 32  # small enough for progress to show, large enough to fill micro-batches
ROLE = "diagnose"

OnProgress = Callable[[int, int], None]  # groups read, groups in all


@ray.remote
class StateReader:
    """A frozen model on the resources of a reference."""

    def __init__(self, config: Config, *, rank: int, model_path: str, dtype: str) -> None:
        from negalign_ray.engines.frozen import FrozenModel  # heavy, and only this process needs it

        open_log(config.run_dir, f"{ROLE}-{rank}")
        self._model = FrozenModel.of_run(config, model_path, dtype=dtype)

    def ready(self) -> bool:
        return True

    def states(self, groups: Sequence[Group]) -> list[Any]:
        """float32 arrays [responses, H], one per group."""
        return [states_RH.numpy() for states_RH in self._model.last_states(groups)]


def diagnose(config: Config, *, max_answers: int, on_progress: OnProgress = lambda done, num: None) -> dict[str, Any]:
    """The prediction for `config.model` on `config.data`, also written to <run directory>/diagnose.json.

    Every method's training prompts are among the ones read, whatever answers the method needs. Raises DataError when
    behaviours cannot be compared (evaluation/clouds.py), before anything is started.
    """
    config = with_absolute_paths(config)
    model_path = resolve_model(config.model.path).resolve()
    chat = load_chat(model_path, template=config.model.chat_template)
    data = load_prompts(config.data, chat, seed=config.run.seed, needs=frozenset())
    clouds = draw_clouds(
        data.train, max_answers=max_answers, path=config.data.path, behaviour_column=config.data.behaviour_column
    )
    with shared_cluster():
        states = _read(config, clouds.groups, model_path=model_path, on_progress=on_progress)
    found = {
        "model": config.model.path,
        "data": config.data.path,
        "max_answers": max_answers,
        "left_out": clouds.left_out,
        **prediction(_by_behaviour(clouds.groups, states)),
    }
    write_json(config.run_dir / FILE_NAME, found)
    return found


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _read(config: Config, groups: Sequence[Group], *, model_path: Path, on_progress: OnProgress) -> list[Tensor]:
    """States of every group's answers [responses, H], by as many readers as there are references."""
    section, deadlines = config.references, config.deadlines
    dtype = resolve_dtype(config.model.dtype, gpus=section.gpus)
    readers = [
        start_actor(
            StateReader,
            actor_options(section, name=f"{config.run.name}/{ROLE}-{rank}"),
            config,
            rank=rank,
            model_path=str(model_path),
            dtype=dtype,
        )
        for rank in range(section.num)
    ]
    try:
        starting = {f"{ROLE}-{rank}": reader.ready.remote() for rank, reader in enumerate(readers)}
        wait_until_ready(starting, deadline_s=deadlines.start_s)
        waves = [groups[start : start + GROUPS_PER_CALL] for start in range(0, len(groups), GROUPS_PER_CALL)]
        calls = [readers[number % len(readers)].states.remote(wave) for number, wave in enumerate(waves)]
        states: list[Tensor] = []
        for number, call in enumerate(calls):
            arrays = _get(call, rank=number % len(readers), deadline_s=deadlines.reference_s)
            states += [torch.tensor(array) for array in arrays]
            on_progress(len(states), len(groups))
        return states
    finally:
        for reader in readers:
            ray.kill(reader)


def _get(call: Any, *, rank: int, deadline_s: float) -> Any:
    try:
        return ray.get(call, timeout=deadline_s)
    except ray.exceptions.GetTimeoutError:
        reason = f"no answer within deadlines.reference_s={deadline_s:g} s; raise it, or lower --max-answers"
        raise StallError(reason, role=ROLE, rank=rank) from None
    except ray.exceptions.RayError as error:
        raise typed(error, role=ROLE, rank=rank) from error


def _by_behaviour(groups: Sequence[Group], states: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """{behaviour: (good states [N, H], bad states [N, H])}"""
    rows: dict[str, dict[Role, list[Tensor]]] = {}
    for group, states_RH in zip(groups, states, strict=True):
        assert group.prompt.behaviour is not None, "draw_clouds takes only prompts with a behaviour"
        kinds = rows.setdefault(group.prompt.behaviour, {Role.POSITIVE: [], Role.NEGATIVE: []})
        for response, state_H in zip(group.responses, states_RH, strict=True):
            kinds[response.role].append(state_H)
    return {name: (torch.stack(k[Role.POSITIVE]), torch.stack(k[Role.NEGATIVE])) for name, k in rows.items()}
