"""When the samplers get new weights, and how old a sample may be when it is trained on.

A weight version is the number of optimizer steps behind it; the batch of step s is trained by version s.
Samples for steps before T0 (`online_from_step`) come from the initial model, version 0.

    online, staleness n      step s accepts versions max(s - n, T0) .. s
    interval, every R steps  step s accepts the snapshot taken at T0 + R * floor((s - T0) / R)
"""

from dataclasses import dataclass

from negalign_ray.config import SamplingConfig


@dataclass(frozen=True, slots=True)
class SamplingSchedule:
    interval: bool
    online_from_step: int  # T0
    refresh_every: int  # R, of `interval`
    staleness: int  # n, of `online`
    also_every: int = 0  # versions that the samplers get besides, to be evaluated; 0 = none. Only where no sample of
    # theirs is trained on: else the answers of a version would be there that no step may be trained on

    @classmethod
    def from_config(cls, config: SamplingConfig) -> "SamplingSchedule":
        return cls(
            interval=config.schedule == "interval",
            online_from_step=config.online_from_step,
            refresh_every=config.refresh_every,
            staleness=config.staleness,
        )

    def oldest_allowed(self, step: int) -> int:
        """Oldest weight version whose samples may be trained on at `step`."""
        if step < self.online_from_step:
            return 0
        if self.interval:
            return step - (step - self.online_from_step) % self.refresh_every
        return max(step - self.staleness, self.online_from_step)

    def due(self, num_steps_done: int) -> int:
        """The version that the samplers hold once that many steps are done: what a resumed run gives them first."""
        if num_steps_done < self.online_from_step:
            return 0
        return self.oldest_allowed(num_steps_done) if self.interval else num_steps_done

    def publishes(self, version: int) -> bool:
        """Whether the samplers need this version."""
        if self.also_every and version and version % self.also_every == 0:
            return True
        if version == 0 or version < self.online_from_step:
            return False
        return not self.interval or self.oldest_allowed(version) == version
