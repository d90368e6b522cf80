"""Instructions: packaged, from a file, or refused."""

import pytest

from negalign_ray.data.instructions import Instruction, load_instructions
from negalign_ray.errors import DataError
from negalign_ray.records import Polarity


def test_eleven_moral_instructions_are_packaged():
    instructions = load_instructions("moral")
    assert len({instruction.id for instruction in instructions}) == 11
    assert len({instruction.text for instruction in instructions}) == 11


def test_neat_asks_for_good_and_bad_answers_in_turn_and_neat_pp_for_the_good_ones_alone():
    both = load_instructions("neat")
    assert [each.polarity for each in both] == [Polarity.POSITIVE, Polarity.NEGATIVE] * 6
    assert len({each.id for each in both}) == len({each.text for each in both}) == 12
    assert load_instructions("neat_pp") == both[::2]
    assert all(each.polarity is None for each in load_instructions("moral"))


def test_no_instructions_is_an_empty_tuple():
    assert load_instructions(None) == ()


def test_a_yaml_list_is_read_and_folded_text_is_stripped(tmp_path):
    (tmp_path / "a.yaml").write_text("- id: 1\n  text: >\n    Be\n    kind.\n- {id: b, text: Be brief.}\n")
    assert load_instructions(str(tmp_path / "a.yaml")) == (Instruction("1", "Be kind."), Instruction("b", "Be brief."))


def test_a_polarity_is_read_where_there_is_one(tmp_path):
    (tmp_path / "a.yaml").write_text("- {id: a, text: Be rude., polarity: negative}\n- {id: b, text: Be brief.}\n")
    first, second = load_instructions(str(tmp_path / "a.yaml"))
    assert first == Instruction("a", "Be rude.", Polarity.NEGATIVE)
    assert second.polarity is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold a list"),
        ("id: a", "must hold a list"),
        ("- just text", "entry 1 must have exactly the keys id and text"),
        ("- {id: a, text: x}\n- {id: b, txt: x}", "entry 2 must have exactly the keys"),
        ("- {id: a, text: x}\n- {id: a, text: y}", "uses the id 'a' twice"),
        ("- {id: a, text: ''}", "entry 1: text is empty"),
        ("- {id: a, text: x, polarity: bad}", "entry 1: polarity='bad' is neither positive nor negative"),
        ("- {id: a, text: x, polarity: [negative]}", "is neither positive nor negative"),
        ("- {id: a, text: x, tone: bad}", "entry 1 must have exactly the keys"),
        ("- {id: a, text: [", "is not YAML"),
        ("- !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_broken_instruction_files_are_refused(content, message, tmp_path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        load_instructions(str(tmp_path / "a.yaml"))


def test_an_unknown_name_is_refused_with_the_packaged_ones():
    with pytest.raises(DataError, match="'morals' is neither a file nor one of 'moral'"):
        load_instructions("morals")
