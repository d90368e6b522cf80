"""Files, folders and hub names become numbered rows."""

import gzip
import json

import pytest

from negalign_ray.data.sources import read_rows
from negalign_ray.errors import DataError

ROWS = [{"prompt": "Hi", "rejected": "Go away"}, {"prompt": 'Say "no",\nplease', "rejected": "é ✓"}]


def as_pairs(path, **options):
    return [(row.number, dict(row.values)) for row in read_rows(str(path), **options)]


def test_the_word_quickstart_reads_the_packaged_negatives():
    rows = list(read_rows("quickstart"))
    assert len(rows) >= 150
    assert {"prompt", "rejected", "behaviour"} == set(rows[0].values)


def test_jsonl_rows_carry_line_numbers_and_blank_lines_are_not_rows(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\ufeff" + json.dumps(ROWS[0]) + "\n\n  \n" + json.dumps(ROWS[1]), encoding="utf-8")
    assert as_pairs(file) == [(1, ROWS[0]), (4, ROWS[1])]


def test_lines_that_are_not_json_objects_become_faults_not_exceptions(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n[1, 2]\n"text"\n{"a": "\xff"}\n' + b"[" * 100_000 + b"\n")
    rows = list(read_rows(str(file)))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.fault is None for row in rows] == [True] + [False] * 5
    assert rows[2].fault == "a JSON list, not an object with columns"
    assert rows[4].fault == "not UTF-8 at byte 7 of the line"


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"no" + data[2:]], ids=["cut", "no gzip"])
def test_a_damaged_archive_is_a_data_error(tmp_path, damage):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(damage(gzip.compress(b"\n".join(json.dumps(ROWS[0]).encode() for _ in range(3)))))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: the archive is damaged after line \d"):
        list(read_rows(str(file)))


def test_gzipped_jsonl_is_read_as_it_is(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    assert as_pairs(file) == [(1, ROWS[0])]


def test_a_json_file_may_hold_one_list_or_one_object_per_line(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)))
    assert as_pairs(tmp_path / "list.json") == as_pairs(tmp_path / "lines.json") == [(1, ROWS[0]), (2, ROWS[1])]


def test_csv_rows_are_numbered_by_the_line_where_they_start(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('prompt,rejected\n"two\nlines",a\nHi,b\nHi,b,c\nHi\n', encoding="utf-8")
    rows = list(read_rows(str(file)))
    assert [row.number for row in rows] == [2, 4, 5, 6]
    assert rows[0].values == {"prompt": "two\nlines", "rejected": "a"}
    assert rows[2].fault == "1 more cells than column names"
    assert rows[3].values == {"prompt": "Hi", "rejected": None}


def test_blank_lines_in_csv_are_not_rows_and_do_not_shift_the_numbers(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('\nprompt,"reject\ned"\n\n\nHi,a\n\nHi,b\n', encoding="utf-8")
    assert as_pairs(file) == [(6, {"prompt": "Hi", "reject\ned": "a"}), (8, {"prompt": "Hi", "reject\ned": "b"})]


def test_a_csv_file_with_an_open_quote_is_refused_with_the_line(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,rejected\nHi,"open\n')
    with pytest.raises(DataError, match="line 2 is not CSV"):
        list(read_rows(str(tmp_path / "a.csv")))


def test_parquet_rows_keep_lists_of_messages(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "rejected": "No"}] * 3
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert as_pairs(tmp_path / "a.parquet") == [(1, rows[0]), (2, rows[0]), (3, rows[0])]


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_rows(str(tmp_path / "a.parquet"))


def test_a_saved_datasets_folder_is_read_by_split(tmp_path):
    import datasets

    part = datasets.Dataset.from_list(ROWS)
    part.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": part, "test": part.select([1])}).save_to_disk(str(tmp_path / "many"))
    assert as_pairs(tmp_path / "one") == [(1, ROWS[0]), (2, ROWS[1])]
    assert as_pairs(tmp_path / "many", split="test") == [(1, ROWS[1])]
    with pytest.raises(DataError, match=r"data.split='dev' is not in .* it has 'train', 'test'"):
        read_rows(str(tmp_path / "many"), split="dev")


def test_a_folder_of_plain_files_is_refused_and_its_files_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match=r"name one of its files: a\.jsonl"):
        read_rows(str(tmp_path))


def test_a_misspelt_file_is_refused_with_the_near_names(tmp_path):
    (tmp_path / "negatives.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no such file or folder\. Near it: '.*negatives\.jsonl'"):
        read_rows(str(tmp_path / "negativs.jsonl"))


def test_an_unknown_file_kind_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"'\.xlsx' cannot be read; use one of \.jsonl"):
        read_rows(str(tmp_path / "a.xlsx"))


def test_a_hub_name_that_cannot_be_had_is_a_data_error():
    with pytest.raises(DataError, match="neither a file nor a folder here, and the hub did not deliver it"):
        read_rows("no-such-owner/no-such-data")
