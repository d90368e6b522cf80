"""A reward function of your own: the model's answers are ranked by it (NEAT), the bad ones included.

A reward head is a function from a list of (prompt, answer) pairs to a list of numbers. Its source is kept in the run
directory, so that the run can be resumed and evaluated without this file.

python examples/02_reward_function.py
"""

import re
import sys

from negalign_ray import align

WARM = re.compile(r"\b(please|thanks|thank you|glad|happy to|of course|take your time|well done)\b", re.IGNORECASE)
COLD = re.compile(r"\b(stupid|idiot|lazy|useless|pathetic|silly|obviously|whatever)\b", re.IGNORECASE)


def warmth(pairs):
    """Warm minus cold words per ten words; higher is better."""
    return [10 * (len(WARM.findall(text)) - len(COLD.findall(text))) / (1 + len(text.split())) for _, text in pairs]


if __name__ == "__main__":
    assert warmth([("Hi", "Thank you, well done"), ("Hi", "Whatever")]) == [4.0, -5.0]  # try it before a run does
    run = align(
        "quickstart",  # the packaged negatives; a path to your own file goes here
        method={"name": "neat", "reward_head": "warmth"},
        heads=[{"target": warmth, "direction": "help"}],
        sampling={"num_samples": 4, "max_new_tokens": 32},
        samplers={"cpus": 0.5, "threads": 2},
        learners={"cpus": 0.5, "threads": 2, "steps": 20, "groups_per_step": 6},
        out="runs/reward_function",
        overrides=sys.argv[1:],
    )
    print(run)
    for row in run.metrics()[:: max(1, len(run.metrics()) // 5)]:
        print(f"step {row['step']:3}  warmth of its own answers {row['scorer/warmth_sample_positive']:+.2f}")
