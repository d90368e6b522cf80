"""scripts/measure_reliability.py turns what the fault tests report into the table of docs/reliability.md."""

import pytest

from tests.scripts import load_script

RESULTS = """<testsuites><testsuite name="pytest">
<testcase name="test_a"><properties>
  <property name="fault" value="kill -9 of a sampler" /><property name="ended" value="goes on" />
  <property name="seconds" value="7.5" /><property name="step_s" value="1.0" />
  <property name="reissued" value="4" /><property name="lost" value="0" />
</properties></testcase>
<testcase name="test_b"><properties>
  <property name="fault" value="a head returns NaN" /><property name="ended" value="goes on" />
  <property name="lost" value="4" />
</properties></testcase>
<testcase name="test_c"><properties>
  <property name="fault" value="kill -9 of the conductor" /><property name="ended" value="error, resumed" />
</properties></testcase>
<testcase name="test_d" />
<testcase name="test_e"><skipped message="root" /></testcase>
{more}</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def script():
    return load_script("measure_reliability")


def results(script, tmp_path, more: str = ""):
    (tmp_path / "results.xml").write_text(RESULTS.format(more=more))
    return script.read_results(tmp_path / "results.xml")


def test_the_table_has_a_row_for_every_report_and_the_totals(script, tmp_path):
    found = results(script, tmp_path)
    assert (found.failed, found.skipped) == ((), ("test_e",))
    assert script.table(found.rows)[2:] == [
        "| kill -9 of a sampler | goes on | 7.5 | 1.0 | 4 | 0 |",
        "| a head returns NaN | goes on |  |  |  | 4 |",
        "| kill -9 of the conductor | error, resumed |  |  |  |  |",
        "",
        "3 faults injected. 2 runs went on, 1 ended with a typed error and went on from their checkpoint, 0 ended as "
        "the table says. 4 groups were lost, all of them counted; none was trained on twice.",
    ]


def test_a_test_that_failed_is_named_even_when_it_had_reported(script, tmp_path):
    reported = '<properties><property name="fault" value="x" /></properties>'
    found = results(script, tmp_path, f'<testcase name="test_f">{reported}<failure message="no" /></testcase>')
    assert found.failed == ("test_f",)
    assert len(found.rows) == 3


def test_a_fault_that_was_measured_again_takes_its_old_line_and_a_new_one_comes_last(script):
    old = [{"fault": "a", "ended": "goes on", "seconds": "1.0", "step_s": "", "reissued": "", "lost": "0"}]
    old.append({**old[0], "fault": "b", "seconds": ""})
    page = script.with_table("<!-- faults -->\n<!-- /faults -->\n", script.table(old))
    assert list(script.rows_of(page)) == old
    again, new = {**old[0], "seconds": "2.0"}, {**old[0], "fault": "c"}
    assert script.updated(script.rows_of(page), [new, again]) == [again, old[1], new]


def test_only_the_table_is_replaced(script):
    page = "above\n<!-- faults -->\nold\n<!-- /faults -->\nbelow\n"
    assert script.with_table(page, ["new"]) == "above\n<!-- faults -->\nnew\n<!-- /faults -->\nbelow\n"
