"""Frames from hand-made facts: what they show, and that they fit."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from negalign_ray.events import Event, EventKind
from negalign_ray.live.blocks import Block, fit
from negalign_ray.live.curves import SECTIONS, Curve
from negalign_ray.live.facts import QueueFacts, RoleFacts, RunFacts
from negalign_ray.live.view import SECTION_STYLES, frame
from negalign_ray.loops.guards import Reading
from negalign_ray.loops.pace import Pace


def facts(*, num_samplers: int = 2, **changes) -> RunFacts:
    samplers = [RoleFacts("sampler", rank, "sample call", 75.0, 41, 0.25, works=True) for rank in range(num_samplers)]
    values = {
        "name": "hh-online",
        "method": "d2o",
        "model": "smollm2-135m-instruct",
        "phase": "training",
        "is_over": False,
        "step": 42,
        "num_steps": 120,
        "time_s": 754.0,
        "roles": (
            *samplers,
            RoleFacts("learner", 0, "waits for the batch of step 42", 3.0, 42, 0.5),
            RoleFacts("learner", 1, "trains on step 41", 5.0, 42, 0.75, works=True),
        ),
        "queue": QueueFacts(under_way=9, ready=7, capacity=32),
        "pace": Pace(groups_per_s=1.45, sampled_tokens_per_s=642.4, trained_tokens_per_s=12_910.0, eta_s=3700.0),
        "curves": (
            Curve("loss", "loss", (0.7, 0.6, 0.5), 3, "{:.3f}", "down"),
            Curve("log-ratios", "log-ratio bad", (0.0, -4.0, -8.0), 3, "{:+.2f}", "down"),
            Curve("rewards", "polite score", (0.75, 0.5), 3, "{:.3f}", "up"),
            Curve("health", "staleness", (1.0, 1.0, 1.0), 3, "{:.1f}"),
        ),
        "guards": (
            Reading("entropy", "sampler/entropy_nats", 0.06, 0.6, False),
            Reading("kl", "learner/kl_nats", 0.55, 0.5, True),
            Reading("openings", "sampler/distinct_openings_frac", -0.1, 0.5, False),
            Reading("non_finite", "conductor/nonfinite_values", 0.0, 0.0, False),
        ),
        "events": (
            Event(EventKind.SCALE, "samplers: 1 to 2", time_s=60.0),
            Event(EventKind.FAULT, "the actor\n died", role="sampler", rank=1, time_s=700.0),
        ),
    }
    return RunFacts(**{**values, **changes})


def shown(what: RunFacts, *, width: int, height: int | None = None, style: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=style, color_system="standard" if style else None)
    console.print(frame(what, width=width, height=height))
    return console.file.getvalue()


def line_with(text: str, output: str) -> str:
    [line] = [line for line in output.splitlines() if text in line]
    return line


def words(text: str, output: str) -> str:
    """The line with `text`, without its frame and what only fills it."""
    return " ".join(line_with(text, output).strip("│ ").split())


@pytest.mark.parametrize("width", [80, 100, 131, 132, 140, 200])
@pytest.mark.parametrize("height", [None, 50, 24, 16])
@pytest.mark.parametrize("num_samplers", [1, 3, 40])
def test_no_line_is_wider_and_no_frame_higher_than_the_terminal(width, height, num_samplers):
    lines = shown(facts(num_samplers=num_samplers), width=width, height=height).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert height is None or len(lines) <= height
    assert "▶ training   step 42/120" in lines[1]


def test_a_frame_of_80_columns_tells_all_there_is():
    output = shown(facts(), width=80)
    assert "35%   12:34   ETA 1:01:40" in output
    assert "7 ready, 9 under way of 32 groups · 1.45 groups/s" in output
    assert "d2o · smollm2-135m-instruct" in output
    assert words("sampler 0", output) == "sampler 0 v41 sample call 1:15 642 tok/s ━━────── 25%"
    assert words("sampler 1", output) == "sampler 1 v41 sample call 1:15 ━━────── 25%"
    assert words("learner 0", output) == "learner 0 v42 waits for the batch of … 0:03 12.9k tok/s ━━━━──── 50%"
    assert line_with("loss 0.500", output).startswith("╭─ loss 0.500 ─")
    assert words("log-ratio bad", output) == "log-ratio bad █▅▁ -8.00 ▼ 8.00"
    assert words("staleness", output) == "staleness ▁▁▁ 1.0", "what has not changed has no change"
    assert words("fault", output) == "11:40 ✗ fault sampler[1] the actor died"


def test_the_guards_nearest_to_firing_come_first():
    output = shown(facts(), width=80)
    assert line_with(" kl ", output).index("110%") < line_with(" kl ", output).index("entropy")
    assert "10%" in line_with("entropy", output)
    assert line_with("openings", output).split().count("0%") == 2


def test_a_change_for_the_better_is_green_and_one_for_the_worse_red():
    output = shown(facts(), width=80, style=True)
    assert re.search(r"\x1b\[32m *▼ 8\.00", line_with("log-ratio bad", output))
    assert re.search(r"\x1b\[31m *▼ 0\.250", line_with("polite score", output))


def test_many_actors_are_told_role_by_role():
    output = shown(facts(num_samplers=16), width=80)
    assert words("sampler ×16", output) == "sampler ×16 v41 16 at work 642 tok/s ━━────── 25%"
    assert "1 at work, 1 idle" in line_with("learner ×2", output)
    assert "62%" in line_with("learner ×2", output)  # the mean of 50 % and 75 %


def test_a_low_terminal_shows_the_loss_as_a_curve_and_the_roles_together():
    output = shown(facts(num_samplers=8), width=80, height=24)
    assert "▇" in line_with(" loss ", output) or "▁" in line_with(" loss ", output)
    assert "sampler ×8" in output
    assert "the actor died" in output, "the last events stay"


def test_a_run_before_its_first_step_is_a_frame_too():
    before = facts(step=0, time_s=None, queue=None, pace=Pace(), curves=(), guards=(), events=(), phase="starting")
    output = shown(before, width=80, height=24)
    assert "▶ starting   step 0/120" in output
    assert "no step is finished yet" in output
    assert "curves" not in output


@pytest.mark.parametrize(
    ("phase", "mark"), [("finished", "✓"), ("failed", "✗"), ("cut short", "✗"), ("ended by guard kl", "■")]
)
def test_an_ended_run_says_how_it_ended_and_has_no_eta(phase, mark):
    output = shown(facts(phase=phase, is_over=True), width=80)
    assert f"{mark} {phase}" in output
    assert "ETA" not in output


def test_of_checkpoints_only_the_newest_is_told_and_never_at_the_price_of_a_fault():
    sealed = [Event(EventKind.CHECKPOINT, f"step-{step} is sealed", time_s=800.0 + step) for step in range(30)]
    output = shown(facts(events=(*facts().events, *sealed)), width=80, height=24)
    assert "the actor died" in output
    assert "step-29 is sealed" in output
    assert output.count("sealed") == 1


def test_a_note_is_part_of_the_header():
    assert "no answer within 5 s" in shown(facts(note="no answer within 5 s"), width=80, height=24)


def test_texts_of_a_run_are_no_markup():
    event = Event(EventKind.FAULT, "[red]boom[/red] [/]", time_s=1.0)
    assert "[red]boom[/red] [/]" in shown(facts(events=(event,), name="run"), width=80)


def test_lines_go_before_blocks_and_those_of_low_priority_first():
    first = Block("first", ("a",) * 4, priority=2, keeps=2)
    chart = Block("chart", ("b",) * 5, priority=1, is_whole=True)
    last = Block("last", ("c", "d", "e"), priority=0, keeps=1, keeps_last=True)

    def lines(height: int | None) -> dict[str, int]:
        return {block.title: len(block.lines) for block in fit([first, chart, last], height)}

    assert lines(None) == lines(18) == {"first": 4, "chart": 5, "last": 3}  # 4 + 5 + 3 lines and 3 borders of 2
    assert lines(16) == {"first": 4, "chart": 5, "last": 1}
    assert [block.lines for block in fit([first, chart, last], 16)][2] == ("e",)
    assert lines(15) == {"first": 4, "last": 1}
    assert lines(8) == {"first": 3, "last": 1}
    assert lines(6) == {"first": 2}
    assert lines(3) == {}


def test_every_curve_has_a_colour():
    assert SECTION_STYLES.keys() == set(SECTIONS)
