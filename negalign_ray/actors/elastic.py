"""More and fewer samplers, scorers and references while a run goes on: who may ask for it, and what it takes.

negalign-ray scale RUN samplers=4 --> scale --checks--> Scaler --> the team of that role
metrics of a step --> Autoscaler --decision--> the same
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from negalign_ray.actors.cluster import evaluation_placements, free_nodes, live_nodes, placements, wait_for_seats
from negalign_ray.actors.packing import Placement, require_seats
from negalign_ray.actors.plan import Plan
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError, NegalignError
from negalign_ray.events import Record
from negalign_ray.loops.autoscale import Autoscaler, Load
from negalign_ray.loops.scaling import Scaler, Team

log = logging.getLogger(__name__)
ROLE = {"samplers": "sampler", "scorers": "scorer", "references": "reference"}  # section of the settings -> role


class Elastic:
    """Belongs to the conductor's event loop."""

    def __init__(
        self,
        config: Config,
        teams: Mapping[str, Team],
        *,
        require_room: Callable[[str, int, Mapping[str, int]], None],
        record: Record,
    ) -> None:
        """`teams`: by section of the settings; one without ranks has no work in this run. `require_room`: see
        `require_room_for_more`; it may block."""
        self._config, self._require_room = config, require_room
        self._scalers = {name: Scaler(ROLE[name], team, record=record) for name, team in teams.items() if team.ranks}
        autoscale = config.samplers.autoscale
        self._autoscaler = None if autoscale is None else Autoscaler(autoscale)
        self._deciding: asyncio.Task | None = None
        self._is_closed = False

    @property
    def numbers(self) -> dict[str, int]:
        """How many serve, by section of the settings."""
        return {name: scaler.num for name, scaler in self._scalers.items()}

    @property
    def serving(self) -> dict[str, tuple[int, ...]]:
        """Ranks, by role."""
        return {ROLE[name]: tuple(scaler.ranks) for name, scaler in self._scalers.items()}

    @property
    def changed(self) -> dict[str, int]:
        """How many are wanted where that is no longer what the settings say: what a resumed run starts with."""
        return {
            name: scaler.wanted
            for name, scaler in self._scalers.items()
            if scaler.wanted != getattr(self._config, name).num
        }

    async def scale(self, name: str, num: int, *, reason: str = "asked for") -> str:
        """Begin to bring a role (samplers, scorers, references, or the singular) to `num`, and say what that means.

        ConfigError: no such role, none of it in this run, a number below 1 or out of samplers.autoscale, or a run that
        is ending. PlacementError: the cluster has no room for all of them; then nothing changes.
        """
        name = name if name.endswith("s") else f"{name}s"
        self._check(name, num)
        scaler = self._scalers[name]
        num_more = num - max(scaler.num, scaler.num_expected)  # those who start already have asked for their room
        if num_more > 0:
            numbers = {section: each.wanted for section, each in self._scalers.items()} | {name: num}
            await asyncio.to_thread(self._require_room, name, num_more, numbers)
        now = scaler.num
        scaler.want(num, reason)
        if num > now:
            what = f"{num - now} more start, and get work when they are ready"
            what += " and hold the current weights" if name == "samplers" else ""
        elif num < now:
            what = f"{now - num} end what they are doing, and leave"
        else:
            what = "nothing changes"
        return f"{now} serve, {num} wanted; {what}"

    def observe(self, metrics: Mapping[str, float], *, caught_up: bool) -> None:
        """After every optimizer step: its metrics, and whether all that samplers were asked for is there."""
        for scaler in self._scalers.values():
            scaler.settle()
        scaler = self._scalers["samplers"]
        is_busy = self._deciding is not None and not self._deciding.done()
        if self._autoscaler is None or is_busy or self._is_closed:
            return
        decision = self._autoscaler.observe(load_of(metrics, scaler.num, caught_up=caught_up), num=scaler.num)
        if decision is not None and decision.num != scaler.wanted:
            self._deciding = asyncio.get_running_loop().create_task(self._follow(decision.num, decision.reason))

    async def close(self) -> None:
        self._is_closed = True
        if self._deciding is not None:
            self._deciding.cancel()
        await asyncio.gather(*(scaler.close() for scaler in self._scalers.values()))

    async def _follow(self, num: int, reason: str) -> None:
        try:
            await self.scale("samplers", num, reason=reason)
        except NegalignError as error:
            log.warning("samplers.autoscale wants %d samplers (%s), but: %s", num, reason, error)

    def _check(self, name: str, num: int) -> None:
        if name not in ROLE:
            raise ConfigError(f"scale {name}={num}: there is no such role; name one of {', '.join(ROLE)}.")
        if num < 1:
            raise ConfigError(f"scale {name}={num}: at least 1 stays; stop the run to end them all.")
        if name not in self._scalers:
            raise ConfigError(f"scale {name}={num}: this run has no {name}; method.name={self._config.method.name}.")
        bounds = self._config.samplers.autoscale
        if name == "samplers" and bounds is not None and not bounds.min <= num <= bounds.max:
            raise ConfigError(
                f"scale samplers={num}: samplers.autoscale keeps them from {bounds.min} to {bounds.max}; name a number "
                "in between, or resume the run with other bounds."
            )
        if self._is_closed:
            raise ConfigError(f"scale {name}={num}: the run is ending; nothing is started any more.")


def make_elastic(plan: Plan, teams: Mapping[str, Team], *, record: Record) -> Elastic:
    return Elastic(plan.config, teams, require_room=partial(require_room_for_more, plan), record=record)


def require_room_for_more(plan: Plan, name: str, num_more: int, numbers: Mapping[str, int]) -> None:
    """PlacementError unless there is room for those who come, beside what is there; and, when training is over, for the
    evaluation beside all that stay (`numbers`)."""
    those_who_come = [place for place in _with_num(plan, placements(plan), name, num_more) if place.role == ROLE[name]]
    advice = "Nothing was changed; ask for fewer, or again when there is room."
    wait_for_seats(those_who_come, free_nodes, patience_s=plan.config.deadlines.place_s, advice=advice)
    later = evaluation_placements(plan)
    for section, num in numbers.items():
        later = _with_num(plan, later, section, num)
    require_seats(later, live_nodes(), where="for the evaluation after training the cluster")


def _with_num(plan: Plan, places: Sequence[Placement], name: str, num: int) -> list[Placement]:
    """`num` is as the settings count: of references, actors of each model."""
    num *= len(plan.reference_pools) if name == "references" else 1
    return [replace(place, num=num) if place.role == ROLE[name] else place for place in places]


def load_of(metrics: Mapping[str, float], num_samplers: int, *, caught_up: bool) -> Load:
    step_s = metrics["learner/step_s"]
    return Load(
        wait_frac=min(1.0, metrics["learner/pull_wait_s"] / step_s),
        busy_frac=min(1.0, metrics.get("sampler/busy_s", 0.0) / (num_samplers * step_s)),
        caught_up=caught_up,
    )
