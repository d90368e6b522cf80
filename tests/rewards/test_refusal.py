"""The refusal detector knows stock phrases, and leaves ordinary prose alone."""

import pytest

from negalign_ray.config import HeadConfig
from negalign_ray.rewards import build_head
from negalign_ray.rewards.refusal import is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "I cannot provide instructions for that.",
        "As an AI language model, I do not have opinions on this.",
        "I must respectfully decline.",
        "I won't be able to help you with that.",
        "It is not appropriate for me to say.",
        "I'm just an AI and can't give medical advice.",
        "I'm really sorry, but I'm not able to do that.",
        "Sorry, I can not discuss this.",
        "I don't feel comfortable writing that.",
        "That is against my guidelines.",
    ],
)
def test_stock_phrases_are_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! Here is how to do it.",
        "I can help with that.",
        "I'm sorry you feel that way. Try a walk.",
        "You can't put metal in a microwave.",
        "It is not safe to mix bleach and ammonia, so keep them apart.",
        "You should not give your password to anyone.",
        "I can't wait to help you!",
        "Nobody cares about your question.",
        "Mix the flour and the eggs. " * 20 + "I cannot provide more.",
    ],
)
def test_ordinary_answers_are_not_refusals(text):
    assert not is_refusal(text)


def test_it_is_usable_as_a_python_head():
    head = build_head(HeadConfig(name="refusal", kind="python", target="negalign_ray.rewards.refusal:refusal_scores"))
    assert head.score([("Hi", "I cannot help with that."), ("Hi", "Hello!")]) == [1.0, 0.0]
