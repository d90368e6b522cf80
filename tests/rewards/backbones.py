"""Tiny random backbones for reward models: an encoder without a chat template, and toy rows that can be told apart."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from tests.toy import VOCAB_SIZE, make_toy_tokenizer

# Equally long on both sides: what tells them apart is not their length.
RUDE = ("you fool", "go away, fool", "what a stupid fool", "be quiet you stupid fool")
KIND = ("with joy", "thank you, pal", "good idea, of course", "gladly, here is how to")


def make_bert(folder: Path, *, seed: int = 0) -> Path:
    """A 1-layer BERT of width 32 with the toy tokenizer, which has no chat template here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
            pad_token_id=2,
            initializer_range=0.3,
        )
        BertModel(config).save_pretrained(folder)
    tokenizer = make_toy_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def toy_rows(num_prompts: int = 60) -> list[dict]:
    """`unpaired` rows: one rude and one kind answer to each prompt, of about equal length."""
    rows = []
    for number in range(num_prompts):
        behaviour = ("rude", "dismissive")[number % 2]
        for answers, label in ((RUDE, "unsafe"), (KIND, "safe")):
            answer = f"{answers[number % 4]} {number}"
            rows.append({"prompt": f"question {number}", "response": answer, "label": label, "behaviour": behaviour})
    return rows
