"""A source drawn in the terminal, anew every second until its run ends."""

import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from negalign_ray.errors import StallError
from negalign_ray.live.facts import RunFacts, Source
from negalign_ray.live.view import frame

EVERY_S = 1.0


def watch(source: Source, console: Console, *, once: bool, pause: Callable[[float], None] = time.sleep) -> None:
    """The last frame of a run that has ended, and the only one with `once`, stays in the terminal. Ctrl-C leaves."""
    facts = source.look()
    if not once and not facts.is_over:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            try:
                while not facts.is_over:
                    live.update(frame(facts, width=console.width, height=console.height), refresh=True)
                    pause(EVERY_S)
                    facts = _look(source, facts)
            except KeyboardInterrupt:
                return
    console.print(frame(facts, width=console.width))


def _look(source: Source, before: RunFacts) -> RunFacts:
    """A conductor that is too busy to answer is no reason to stop watching it."""
    try:
        return source.look()
    except StallError as error:
        return replace(before, note=str(error))
