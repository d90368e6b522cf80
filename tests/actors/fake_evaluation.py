"""An evaluation whose models and judges are numbers."""

from contextlib import contextmanager

from negalign_ray.actors.evaluator import Evaluation
from negalign_ray.evaluation.pricing import PriceBook


class FakeEvaluation(Evaluation):
    """Without actors: judges say 0.5, and every token costs `nats[name]`."""

    def __init__(self, plan, *, nats, **more):
        super().__init__(plan, **more)
        self.nats, self.priced = nats, []

    @contextmanager
    def _scorer(self):
        yield lambda pairs: {"judge": [0.5] * len(pairs)}

    def _price(self, name, model_path, groups):
        self.priced.append(name)
        return PriceBook.of(
            groups, lambda merged: [[-self.nats[name] * len(r.token_ids) for r in g.responses] for g in merged]
        )
