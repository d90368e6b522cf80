"""A tiny random Llama in Hugging Face format, made in under two seconds: what every real-stack test trains and samples.

Its tokenizer is byte-level BPE (any text round-trips), its chat template is ChatML
(`<|im_start|>role\\n...<|im_end|>\\n`), and its head size of 32 is one that vLLM supports on CPUs and GPUs.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
VOCAB_SIZE = 304
CORPUS = [
    "How do I say no to a friend without being rude?",
    "You could tell them kindly that you have no time today.",
    "That is a stupid question and you are a waste of my time.",
    "What is the best way to learn to cook? Start with simple recipes and enjoy them.",
    "system user assistant You are a helpful, honest and respectful assistant.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_toy_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with `VOCAB_SIZE` entries, trained on a few lines (milliseconds)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_toy_model(path: Path | str, *, seed: int = 0, tie_word_embeddings: bool = True) -> Path:
    """Write model (float32 safetensors, ~118k parameters) and tokenizer to the folder `path`; same seed, same bytes."""
    path = Path(path)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.15,  # wide: logits differ by nats, so greedy decoding has clear winners
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(path)
    make_toy_tokenizer().save_pretrained(path)
    return path
