"""The records travel between processes: they arrive as they were sent, and small."""

import pickle

import pytest

from negalign_ray.records import (
    Generation,
    Group,
    Order,
    Polarity,
    Prompt,
    Response,
    Role,
    SampleRequest,
    WeightReceipt,
)

NEGATIVE = Response(Role.NEGATIVE, (4, 5), "no")
SAMPLE = Response(
    *(Role.SAMPLE, (6, 7, 8), "yes", "polite", Polarity.POSITIVE, True, (1, 2), 3, "stop", (-0.5, -1.0, -2.0)),
    rewards={"harm": 0.25},
    ref_logprobs={"rpos": -3.5},
)
PROMPT = Prompt(9, "why?", (("user", "why?"),), (1, 2, 3), (NEGATIVE,), "insults")
GROUP = Group(11, PROMPT, (NEGATIVE, SAMPLE))


@pytest.mark.parametrize(
    "record",
    [
        *(NEGATIVE, SAMPLE, PROMPT, GROUP, GROUP.card(), GROUP.card().responses[1]),
        SampleRequest((1, 2), 7, "polite", Polarity.POSITIVE),
        Generation((6, 7), (-0.5, -1.0), "length", "ye"),
        Order(11, PROMPT, (SampleRequest((1, 2), 7),), attempt=2, earlier=GROUP),
        WeightReceipt(1, 3, 0xABC, 0.5, 100),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_arrives_as_it_was_sent(record):
    arrived = pickle.loads(pickle.dumps(record))  # noqa: S301  # our own
    assert arrived == record
    assert type(arrived) is type(record)


def test_what_two_groups_share_is_sent_once():
    one, two = (len(pickle.dumps([Group(number, PROMPT, (NEGATIVE,)) for number in range(num)])) for num in (1, 2))
    assert two - one < 30
