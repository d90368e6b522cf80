"""What is read from stacks and records when a run stalls; the processes themselves are asked in tests/faults."""

import json

from negalign_ray.actors.stall import RoleProcess, find_processes, is_process_of, place_in, stall_text
from negalign_ray.loops.watchdog import Activity

STACKS = """2026-01-01 INFO a line of the log
Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
Current thread 0x00007f0000000000 (most recent call first):
  File "/site-packages/torch/distributed/c10d.py", line 88 in all_reduce
  File "/src/negalign_ray/engines/deepspeed_engine.py", line 120 in step
  File "/src/negalign_ray/loops/training.py", line 95 in _train_step
  File "/site-packages/ray/worker.py", line 1 in main_loop
"""


def test_the_place_is_the_innermost_call_and_our_own_call_behind_it():
    assert place_in(STACKS) == (
        "all_reduce (/site-packages/torch/distributed/c10d.py:88) under "
        "step (/src/negalign_ray/engines/deepspeed_engine.py:120)"
    )


def test_our_own_code_needs_no_second_frame():
    stacks = 'Thread 0x01 (most recent call first):\n  File "/src/negalign_ray/loops/training.py", line 9 in run\n'
    assert place_in(stacks) == "run (/src/negalign_ray/loops/training.py:9)"


def test_a_process_without_our_code_or_without_stacks_is_told_apart():
    assert (
        place_in('Thread 0x01 (most recent call first):\n  File "/ray/worker.py", line 1 in main_loop\n')
        == "unknown code"
    )
    assert place_in("") == "a process that gives no sign"


def test_processes_are_found_by_what_they_wrote_beside_their_logs(tmp_path):
    (tmp_path / "logs").mkdir()
    record = {"pid": 7, "node_id": "n1", "actor_id": "a1"}
    for name in ("sampler-0", "reference-rpos-1"):
        (tmp_path / "logs" / f"{name}.json").write_text(json.dumps(record))
    assert find_processes(tmp_path) == [
        RoleProcess("reference-rpos-1", 7, "n1", "a1"),
        RoleProcess("sampler-0", 7, "n1", "a1"),
    ]


def test_processes_belong_to_roles_by_name_and_rank():
    reference = Activity("reference", 1, "reference call", 3.0, works=True)
    assert is_process_of("reference-rpos-1", reference)
    assert not is_process_of("reference-rpos-0", reference)
    assert not is_process_of("sampler-1", reference)


def test_the_report_has_what_the_conductor_knows_what_ray_says_and_every_stack():
    who = Activity("learner", 1, "trains on step 3", 40.0, works=True)
    idle = Activity("sampler", 0, "idle", 41.0, works=False, weight_version=2)
    processes = [RoleProcess("learner-1", 7, "n" * 40, "a1"), RoleProcess("sampler-0", 8, "m" * 40, "a2")]
    told = [f"{who}, in a process that gives no sign"]
    text = stall_text([who, idle], told, processes, {"learner-1": "ALIVE"}, {"learner-1": "Thread ...\n"}, still_s=40.0)
    assert text.splitlines() == [
        "Nothing has moved for 40 s. Held up by:",
        "  learner[1]: trains on step 3 for 40 s, in a process that gives no sign",
        "",
        "What the conductor knows:",
        "  learner[1]: trains on step 3 for 40 s",
        "  sampler[0] v2: idle for 41 s",
        "",
        "Processes, and what Ray says of them:",
        "  learner-1: pid 7 on node nnnnnnnnnnnn: ALIVE",
        "  sampler-0: pid 8 on node mmmmmmmmmmmm: unknown",
        "",
        "Stacks of learner-1 (innermost call first):",
        "Thread ...",
        "",
        "Stacks of sampler-0 (innermost call first):",
        "none came",
    ]
