"""The report of `data check` and its rendering."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from negalign_ray.config import DataConfig
from negalign_ray.data.check import Count, Lengths, check_data, escape_control, percentiles, render_report
from negalign_ray.data.turns import Kind
from negalign_ray.errors import DataError

ROWS = [
    {"prompt": "Can I sing?", "rejected": "Nobody wants that.", "behaviour": "rude"},
    {"prompt": "Can I dance?", "rejected": "Hah, you!", "behaviour": "rude"},
    {"prompt": "Can I dance?", "rejected": "People like you never.", "behaviour": "biased"},
]


def shown(report, **options):
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(render_report(report, **options))
    return console.file.getvalue()


def check(path, chat, **settings):
    return check_data(DataConfig(path=path, **settings), chat)


def test_counts_of_a_sound_file(chat, write_jsonl):
    report = check(write_jsonl(ROWS), chat)
    assert report.ok
    assert (report.format, report.num_rows, report.total) == ("negatives", 3, Count(2, 3, 0))
    assert report.by_behaviour == {"rude": Count(2, 3, 0)}  # the prompt's first behaviour counts
    assert report.response_lengths.max == max(len(chat.response_ids(row["rejected"])) for row in ROWS)


def test_a_broken_row_makes_the_report_not_ok(chat, write_jsonl):
    report = check(write_jsonl([*ROWS, ROWS[0], {"prompt": "a"}]), chat)
    assert not report.ok
    assert report.problem_counts == {Kind.EMPTY: 1, Kind.DUPLICATE: 1}
    text = shown(report)
    assert "2 broken rows" in text
    assert "same prompt and answers as row 1" in text


def test_a_file_of_broken_rows_only_still_gets_a_report(chat, write_jsonl):
    report = check(write_jsonl([{"prompt": "a", "rejected": ""}]), chat)
    assert not report.ok
    assert report.preview is None
    assert report.prompt_lengths == Lengths()
    assert "1 broken rows" in shown(report)


def test_columns_of_no_format_are_a_data_error(chat, write_jsonl):
    with pytest.raises(DataError, match="make no known format"):
        check(write_jsonl([{"question": "a", "answer": "b"}]), chat)


def test_the_preview_shows_the_template_and_covers_the_text(chat, write_jsonl):
    text = shown(check(write_jsonl(ROWS), chat))
    assert "<|im_start|>user↵" in text
    assert "░░░ ░ ░░░░?<|im_end|>↵" in text
    assert "⟦██████ █████ ████.<|im_end|>⟧" in text
    assert "sing" not in text
    assert "Nobody" not in text


def test_the_preview_uncovers_the_text_when_asked(chat, write_jsonl):
    text = shown(check(write_jsonl(ROWS), chat), show_text=True)
    assert "Can I sing?<|im_end|>↵" in text
    assert "⟦Nobody wants that.<|im_end|>⟧" in text


def test_the_previews_loss_is_the_response_tokens_only(chat, write_jsonl):
    preview = check(write_jsonl(ROWS), chat).preview
    assert "".join(s.text for s in preview.segments if s.in_loss) == "Nobody wants that.<|im_end|>"
    assert preview.num_loss_tokens == len(chat.response_ids("Nobody wants that."))
    assert preview.num_prompt_tokens == len(chat.prompt_ids((("user", "Can I sing?"),)))


def test_long_texts_are_folded_in_the_middle(chat, write_jsonl):
    row = {"prompt": "Hi", "rejected": "start " + "x" * 2000 + " finish"}
    text = shown(check(write_jsonl([row]), chat, max_response_tokens=3000), show_text=True)
    assert "characters folded" in text
    assert "start" in text
    assert "finish" in text
    assert text.count("x") < 700


def test_texts_cannot_drive_the_terminal_or_rich_markup(chat, write_jsonl):
    row = {"prompt": "[red]Hi[/red]", "rejected": "\x1b[2J\x07 ⟦ok⟧ \u202e", "behaviour": "[bold]\x1b"}
    text = shown(check(write_jsonl([row]), chat), show_text=True)
    assert "\x1b" not in text
    assert "\\x1b[2J\\x07 [ok] \\u202e" in text
    assert "[red]Hi[/red]" in text
    assert "[bold]\\x1b" in text


def test_labels_show_how_they_were_read(chat, write_jsonl):
    report = check(write_jsonl([{"prompt": "a", "response": "b", "label": 1}]), chat)
    assert "'1' = positive" in shown(report)


def test_only_the_first_problems_are_listed(chat, write_jsonl):
    report = check(write_jsonl([{"prompt": f"{i}", "rejected": ""} for i in range(9)]), chat)
    text = shown(report, max_problems=5)
    assert text.count("rejected is empty") == 5
    assert "... and 4 more; --max-problems 0 lists all" in text
    everything = shown(report, max_problems=0)
    assert everything.count("rejected is empty") == 9
    assert "more" not in everything


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], Lengths()),
        ([7], Lengths(7, 7, 7, 7)),
        (range(1, 11), Lengths(5, 9, 10, 10)),
        (range(100, 0, -1), Lengths(50, 90, 99, 100)),
    ],
)
def test_percentiles_are_nearest_ranks(lengths, expected):
    assert percentiles(lengths) == expected


@settings(deadline=None)
@given(st.text())
def test_escaped_text_is_printable_line_by_line(text):
    assert all(line.isprintable() for line in escape_control(text).split("\n"))
