"""The guide role of LD-Align: fits its model on one iteration's groups and writes the latent distances onto them."""

import time
from pathlib import Path

import ray

from negalign_ray.actors.processes import open_log
from negalign_ray.config import Config
from negalign_ray.errors import NonFiniteError
from negalign_ray.records import Group


@ray.remote
class Guide:
    """Keeps nothing between iterations: the model is made anew from the seed, so a replaced guide measures the same."""

    def __init__(self, config: Config, *, rank: int, model_path: str) -> None:
        import torch

        open_log(config.run_dir, f"guide-{rank}")
        torch.set_num_threads(config.guide.threads)
        self._config, self._rank, self._model_path = config.guide, rank, Path(model_path)
        self._seed = config.run.seed

    def ready(self) -> bool:
        """Makes a guide once, so that a backbone that cannot be loaded is told at the start."""
        self._make()
        return True

    def guide(self, *groups: Group) -> tuple:
        """(cards, busy seconds, tokens read, its figures) and then the groups with their samples' distances."""
        from negalign_ray.loops.fitting import fit_and_measure

        started = time.perf_counter()
        try:
            guided, figures = fit_and_measure(self._make(), groups, config=self._config, seed=self._seed)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"the fit of the guide diverged ({error.reason}); lower guide.lr={self._config.lr:g}",
                role="guide",
                rank=self._rank,
            ) from error
        busy_s = time.perf_counter() - started
        figures["guide/busy_s"] = busy_s
        head = (
            [group.card() for group in guided],
            busy_s,
            sum(group.num_tokens for group in groups),
            {"figures": figures},
        )
        return head, *guided

    def _make(self):
        from negalign_ray.engines.guide_engine import GuideEngine
        from negalign_ray.loops.fitting import learner_config
        from negalign_ray.models.guide import make_guide

        model = make_guide(self._config, model_path=self._model_path, seed=self._seed)
        return GuideEngine(
            model, config=learner_config(self._config), zero_frac=self._config.zero_frac, seed=self._seed
        )
