"""`negalign-ray top`: a run in the terminal."""

from typing import Annotated

import typer

from negalign_ray.cli.runs import Address, Run


def top(
    run: Run,
    address: Address = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, all of it, and end.")] = False,
) -> None:
    """Watch a run, or look at one that has ended: roles, curves, guards, events. Ctrl-C leaves; the run goes on."""
    from negalign_ray.cli import out
    from negalign_ray.live.sources import open_source
    from negalign_ray.live.watch import watch

    with open_source(run, address) as source:
        watch(source, out, once=once or not out.is_terminal)
