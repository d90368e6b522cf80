"""What a notebook would hold, for tests of the file that is written of its functions. Run as `__main__`."""

import math
import re
from collections import Counter
from math import sqrt as root

from negalign_ray.rewards.refusal import refusal_scores

WORDS = {"please", "thanks"}
RUDE = re.compile(r"\b(fool|idiot)\b", re.IGNORECASE)
MODEL = object()  # something that no file can hold
weight = 2.5


class Scale:
    top = 10

    def apply(self, value):
        return min(self.top, value * weight)


def words(text):
    return [word.strip(".,!").lower() for word in text.split()]


def uses_much(pairs):
    """Module, import under another name, constants, pattern, another function and class; an attribute `MODEL` too."""
    counts = [Counter(words(answer)) for _, answer in pairs]
    polite = [sum(count[word] for word in WORDS) for count in counts]
    rude = [len(RUDE.findall(answer)) for _, answer in pairs]
    return [Scale().apply(root(p)) - math.floor(r) for p, r in zip(polite, rude, strict=True)]


def ping(pairs):
    return [float(len(pairs))] if pairs else pong(pairs)


def pong(pairs):
    return ping([("", "")])


def uses_a_model(pairs):
    return [hash(MODEL) for _ in pairs]


def refuses(pairs):
    return refusal_scores(pairs)


def make(factor):
    def inner(pairs):
        return [factor for _ in pairs]

    return inner


closure = make(3)
