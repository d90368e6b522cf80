"""The loop around the frames, with a source that tells a story."""

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.errors import StallError
from negalign_ray.live.watch import EVERY_S, watch
from tests.live.test_view import facts


class Story:
    """Facts one after the other; an error among them is raised."""

    def __init__(self, *parts) -> None:
        self._parts = iter(parts)

    def look(self):
        part = next(self._parts)
        if isinstance(part, BaseException):
            raise part
        return part


@pytest.fixture
def terminal() -> Console:
    return Console(width=80, height=30, file=io.StringIO(), force_terminal=True, color_system=None)


def test_frames_follow_each_other_every_second_until_the_run_is_over_and_the_last_one_stays(terminal):
    pauses: list[float] = []
    story = Story(facts(step=1), facts(step=2), facts(step=3, phase="finished", is_over=True))
    watch(story, terminal, once=False, pause=pauses.append)
    assert pauses == [EVERY_S, EVERY_S]
    full_screen, _, after = terminal.file.getvalue().partition("\x1b[?1049l")  # leaves the alternate screen
    assert "step 1/120" in full_screen
    assert "step 2/120" in full_screen
    assert "✓ finished   step 3/120" in after


def test_once_is_one_frame_of_a_run_that_goes_on(terminal):
    watch(Story(facts(step=7)), terminal, once=True, pause=lambda _: pytest.fail("nothing to wait for"))
    output = terminal.file.getvalue()
    assert "step 7/120" in output
    assert "\x1b[?1049h" not in output


def test_a_conductor_that_does_not_answer_in_time_leaves_the_last_frame_with_a_note(terminal):
    late = StallError("no answer within 5 s", role="conductor")
    watch(Story(facts(), late, facts(is_over=True)), terminal, once=False, pause=lambda _: None)
    assert "conductor[0]: no answer within 5 s" in terminal.file.getvalue()


def test_ctrl_c_leaves_without_a_word(terminal):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    watch(Story(facts()), terminal, once=False, pause=interrupt)
    assert terminal.file.getvalue().endswith("\x1b[?1049l"), "nothing follows the alternate screen"


def test_the_command_prints_a_frame_where_the_output_is_no_terminal(run_dir, monkeypatch):
    monkeypatch.setattr(cli, "out", Console(width=80))
    result = CliRunner().invoke(cli.app, ["top", str(run_dir)])
    assert result.exit_code == 0, result.output
    assert "✗ cut short   step 3/10" in result.output
    assert "\x1b" not in result.output
