"""Reward heads: what turns a (prompt, answer) pair into a number."""

from negalign_ray.rewards.build import build_head, check_head
from negalign_ray.rewards.protocol import RewardHead

__all__ = ["RewardHead", "build_head", "check_head"]
