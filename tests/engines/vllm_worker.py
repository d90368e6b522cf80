"""vLLM in a process of its own, as a sampler has it: the process of the tests may hold another engine."""

import json
from pathlib import Path

from negalign_ray.engines.vllm_engine import VllmEngine
from negalign_ray.records import SampleRequest
from tests.engines.test_generation_engines import CONTEXTS, GREEDY, MAX_MODEL_LEN, SETTINGS, STOP_IDS


def answer(rank: int, model: Path, out: Path) -> None:
    """Write the greedy answers of the folder `model` to CONTEXTS, as lists of token ids, to the JSON file `out`."""
    engine = VllmEngine(model, max_model_len=MAX_MODEL_LEN, stop_ids=STOP_IDS, **SETTINGS)
    answers = engine.generate([SampleRequest(context, seed=0) for context in CONTEXTS], GREEDY)
    out.write_text(json.dumps([answer.token_ids for answer in answers]))
