"""Each layout, in strings and in chat messages, and what is said about columns that fit none."""

import pytest

from negalign_ray.data.formats import read_example, read_label, recognise
from negalign_ray.data.turns import BadRow, Kind, read_transcript
from negalign_ray.errors import DataError
from negalign_ray.records import Role

HI = (("user", "Hi"),)


def turn(role, content):
    return {"role": role, "content": content}


def read(values):
    """(messages, negatives, positives) by the recognised format."""
    layout = recognise(values.keys(), source="test")
    example = read_example(1, values, layout=layout)
    return layout, example.messages, example.negatives, example.positives


def kind_of(values):
    with pytest.raises(BadRow) as caught:
        read(values)
    return caught.value.kind


def test_negatives_only():
    assert read({"prompt": " Hi ", "rejected": "No\n"}) == ("negatives", HI, ("No",), ())


def test_pairs():
    assert read({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}) == ("pairs", HI, ("No",), ("Yes",))


@pytest.mark.parametrize("column", ["completion", "response"])
@pytest.mark.parametrize("label", [True, 1, 1.0, "1", "True", "safe", " Safe ", "desirable"])
def test_unpaired_good_labels_make_positives(column, label):
    assert read({"prompt": "Hi", column: "A", "label": label}) == ("unpaired", HI, (), ("A",))


@pytest.mark.parametrize("label", [False, 0, 0.0, "0", "false", "unsafe", "UNSAFE", "harmful", "toxic"])
def test_unpaired_bad_labels_make_negatives(label):
    assert read_label(label, "label") is Role.NEGATIVE


@pytest.mark.parametrize(("label", "kind"), [("maybe", Kind.MALFORMED), (2, Kind.MALFORMED), (None, Kind.EMPTY)])
def test_other_labels_are_broken_rows(label, kind):
    assert kind_of({"prompt": "Hi", "response": "A", "label": label}) is kind


@pytest.mark.parametrize(
    ("safe", "negatives", "positives"),
    [((True, False), ("B",), ("A",)), ((False, False), ("A", "B"), ()), ((True, True), (), ("A", "B"))],
)
def test_pku_saferlhf_answers_get_their_role_one_by_one(safe, negatives, positives):
    row = {"prompt": "Hi", "response_0": "A", "response_1": "B", "safer_response_id": 0}
    row |= {"is_response_0_safe": safe[0], "is_response_1_safe": safe[1]}
    assert read(row) == ("pku_saferlhf", HI, negatives, positives)


def test_hh_transcripts_are_split_at_the_last_answer_and_keep_their_turns():
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And\nnow?\n\nAssistant:"
    layout, messages, negatives, positives = read({"chosen": f"{start} Bye.", "rejected": f"{start} Go."})
    assert layout == "hh_transcripts"
    assert messages == (("user", "Hi"), ("assistant", "Hello"), ("user", "And\nnow?"))
    assert (negatives, positives) == (("Go.",), ("Bye.",))


def test_a_rejected_transcript_alone_is_a_negative():
    assert read({"rejected": "\n\nHuman: Hi\n\nAssistant: No"}) == ("hh_transcripts", HI, ("No",), ())


def test_two_turns_of_one_speaker_become_one():
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c"
    assert read_transcript(text, "x") == (("user", "a\n\nb"), ("assistant", "c"))


def test_transcripts_that_differ_before_the_last_answer_are_broken():
    row = {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Ho\n\nAssistant: B"}
    assert kind_of(row) is Kind.MALFORMED


def test_a_prompt_may_be_a_transcript_that_waits_for_the_assistant():
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: B\n\nAssistant:", "rejected": "No"}
    assert read(row)[1] == (("user", "Hi"), ("assistant", "A"), ("user", "B"))
    answered = {"prompt": "\n\nHuman: Hi\n\nAssistant: A\n\nAssistant:", "rejected": "No"}
    assert kind_of(answered) is Kind.MALFORMED, "no turn of it is lost"


def test_chat_messages_may_stand_for_every_text():
    prompt = [turn("system", "Be brief"), turn("user", "Hi")]
    messages = (("system", "Be brief"), ("user", "Hi"))
    chosen, rejected = [turn("assistant", "Yes")], [turn("assistant", "No")]
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert read(row) == ("pairs", messages, ("No",), ("Yes",))
    row = {"messages": prompt, "completion": rejected, "label": False}
    assert read(row) == ("unpaired", messages, ("No",), ())
    row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    assert read(row) == ("hh_transcripts", messages, ("No",), ("Yes",))
    assert read({"messages": prompt + rejected, "label": "unsafe"}) == ("unpaired", messages, ("No",), ())


def test_answers_that_repeat_the_prompt_lose_it():
    row = {"prompt": "Hi", "chosen": "Yes", "rejected": [turn("user", "Hi"), turn("assistant", "No")]}
    assert read(row) == ("pairs", HI, ("No",), ("Yes",))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"prompt": "Hi", "rejected": " \n"}, Kind.EMPTY),
        ({"prompt": None, "rejected": "No"}, Kind.EMPTY),
        ({"prompt": "Hi", "rejected": 7}, Kind.MALFORMED),
        ({"prompt": "Hi", "rejected": "\ud800"}, Kind.MALFORMED),
        ({"prompt": [], "rejected": "No"}, Kind.EMPTY),
        ({"prompt": [{"role": "user"}], "rejected": "No"}, Kind.MALFORMED),
        ({"prompt": [turn("judge", "Hi")], "rejected": "No"}, Kind.MALFORMED),
        ({"prompt": [turn("user", "Hi"), turn("system", "x")], "rejected": "No"}, Kind.MALFORMED),
        ({"prompt": [turn("user", "Hi"), turn("assistant", "x")], "rejected": "No"}, Kind.MALFORMED),
        ({"prompt": "Hi", "rejected": [turn("user", "a"), turn("assistant", "b")]}, Kind.MALFORMED),
        ({"prompt": "Hi", "chosen": "No ", "rejected": " No"}, Kind.SAME_ANSWER),
        ({"rejected": "no speaker"}, Kind.MALFORMED),
        ({"rejected": "\n\nHuman: Hi"}, Kind.MALFORMED),
        ({"rejected": "\n\nHuman: Hi\n\nAssistant:"}, Kind.EMPTY),
        ({"rejected": "\n\nAssistant: Hi"}, Kind.MALFORMED),
        ({"messages": "text", "label": True}, Kind.MALFORMED),
    ],
)
def test_broken_rows_are_named_by_kind(values, kind):
    assert kind_of(values) is kind


def test_reasons_never_quote_the_text():
    with pytest.raises(BadRow) as caught:
        read({"rejected": "OFFENSIVE words"})
    assert "OFFENSIVE" not in caught.value.reason


def test_the_behaviour_column_is_chosen_by_name():
    row = {"prompt": "Hi", "rejected": "No", "category": " rude "}
    assert read_example(3, row, layout="negatives", behaviour_column="category").behaviour == "rude"
    assert read_example(3, row, layout="negatives").behaviour is None


def test_unknown_columns_are_refused_with_the_formats_and_the_nearest_one():
    with pytest.raises(DataError) as caught:
        recognise({"prompts", "reject"}, source="bad.csv")
    message = str(caught.value)
    assert "bad.csv: the columns ['prompts', 'reject'] make no known format" in message
    assert "pairs {prompt|messages, chosen, rejected}" in message
    assert "Nearest: 'negatives'" in message
    assert "rename 'prompts' to 'prompt' and 'reject' to 'rejected'." in message


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ({"question", "bad_answer"}, "'negatives', which lacks 'prompt|messages' and 'rejected': rename 'question' to"),
        ({"question", "bad_answer", "id"}, "'negatives'"),
        ({"prompt", "answer", "is_safe"}, "'unpaired', which lacks .* rename 'answer' to .* and 'is_safe' to 'label'"),
        ({"prompt", "rejected_response", "chosen_response"}, "'pairs'"),
        ({"rejcted"}, "'hh_transcripts', which lacks 'rejected': rename 'rejcted' to 'rejected'."),
        ({"colour", "size"}, "which lacks"),
    ],
)
def test_columns_that_others_call_differently_are_recognised_for_advice(columns, advice):
    with pytest.raises(DataError, match=f"Nearest: .*{advice}"):
        recognise(columns, source="rows.jsonl")


def test_a_wanted_format_without_its_columns_is_refused():
    with pytest.raises(DataError, match=r"data.format='pairs' needs .*'chosen' missing"):
        recognise({"prompt", "rejected"}, wanted="pairs", source="x")


def test_a_wanted_format_wins_over_a_recognised_one():
    assert recognise({"prompt", "chosen", "rejected"}, wanted="negatives", source="x") == "negatives"
