"""An evaluation whose models and judges are numbers."""

from contextlib import contextmanager

from negalign_ray.actors.evaluator import Evaluation


class FakeEvaluation(Evaluation):
    """Without actors: judges say 0.5, every token costs `nats[name]`, and the next one has an entropy of 2."""

    def __init__(self, plan, *, nats, **more):
        super().__init__(plan, **more)
        self.nats, self.asked = nats, []

    @contextmanager
    def _scorer(self):
        yield lambda pairs: {"judge": [0.5] * len(pairs)}

    @contextmanager
    def _reference(self, name, model_path):
        def ask(method, groups):
            self.asked.append((name, method))
            nats = -self.nats[name] if method == "response_logprobs" else 2.0
            return [[nats * len(response.token_ids) for response in group.responses] for group in groups]

        yield ask
