"""One model and a conversation with it, for `negalign-ray generate`."""

import os
from dataclasses import dataclass
from typing import Literal

from negalign_ray.config import SamplersConfig
from negalign_ray.data.chat import ChatTokenizer, load_chat
from negalign_ray.engines.protocols import GenerationEngine, engine_class
from negalign_ray.models.dtype import resolve_dtype
from negalign_ray.models.packaged import resolve_model
from negalign_ray.records import SampleRequest, SamplingSpec

MAX_CONTEXT_TOKENS = 1024  # room for the conversation so far; older turns are forgotten first


@dataclass
class Talk:
    """Keeps the turns, so that a question may refer to earlier ones."""

    engine: GenerationEngine
    chat: ChatTokenizer
    spec: SamplingSpec
    instruction: str | None
    seed: int
    turns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def start(
        cls,
        model: str,
        *,
        engine: Literal["transformers", "vllm"],
        spec: SamplingSpec,
        instruction: str | None,
        seed: int,
    ) -> "Talk":
        """Loads the model in this process. Raises ModelError."""
        import torch

        folder = resolve_model(model)
        chat = load_chat(folder)
        gpus = float(torch.cuda.is_available())
        settings = SamplersConfig(engine=engine, threads=os.cpu_count() or 1, gpus=gpus, max_num_seqs=1)
        loaded = engine_class(engine)(
            folder,
            config=settings,
            dtype=resolve_dtype("auto", gpus=gpus),
            max_model_len=MAX_CONTEXT_TOKENS + spec.max_new_tokens,
            seed=seed,
            stop_ids=chat.end_ids,
        )
        return cls(loaded, chat, spec, instruction, seed)

    def answer(self, question: str) -> str:
        """The model's next turn. Raises RoleError when the question alone is longer than the context."""
        turns = (*self.turns, ("user", question))
        context_ids = self.chat.prompt_ids(turns, self.instruction)
        while len(context_ids) > MAX_CONTEXT_TOKENS and len(turns) > 1:
            turns = turns[2:]
            context_ids = self.chat.prompt_ids(turns, self.instruction)
        [generation] = self.engine.generate([SampleRequest(context_ids, self.seed)], self.spec)
        self.turns = (*turns, ("assistant", generation.text))
        return generation.text
