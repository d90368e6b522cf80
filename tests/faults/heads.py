"""Reward functions that misbehave once in a run, whichever scorer's process asks them."""

import os
import time
from pathlib import Path


def _is_first_time() -> bool:
    """In this run, whose logs this process writes to: a scorer that replaces another one starts without memory."""
    marker = Path(os.readlink("/proc/self/fd/1")).parent / "head-has-failed"
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _good(pairs):
    return [float(len(response.split())) for _, response in pairs]


def hangs(pairs):
    if _is_first_time():
        time.sleep(3600)
    return _good(pairs)


def returns_nan(pairs):
    return [float("nan")] * len(pairs) if _is_first_time() else _good(pairs)


def returns_one_too_few(pairs):
    return _good(pairs[1:] if _is_first_time() else pairs)


def raises(pairs):
    if _is_first_time():
        raise ConnectionError("the reward model is down")
    return _good(pairs)


def takes_a_second(pairs):
    time.sleep(1)
    return _good(pairs)
