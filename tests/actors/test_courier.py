"""Learner rank 0 sends weights while it trains on, and gets rid of a broadcast that hangs. No Ray, no GPU."""

import threading

import pytest
import torch

from negalign_ray.actors.courier import Courier
from negalign_ray.engines.weight_transfer import Meeting
from negalign_ray.engines.weights import WeightBundle
from negalign_ray.errors import StallError

MEETING = Meeting(number=1, world_size=2, address="here", port=1)


class Broadcaster:
    """`hangs`: until it is aborted, as an NCCL call whose peer is gone."""

    def __init__(self, *, hangs: bool = False, fails: bool = False) -> None:
        self.sent, self.num_aborts, self._fails = [], 0, fails
        self.may_end = threading.Event()
        if not hangs:
            self.may_end.set()

    def broadcast(self, bundle, meeting):
        self.may_end.wait(10)
        if self._fails:
            raise RuntimeError("NCCL error")
        self.sent.append((bundle.version, meeting.number))

    def abort(self):
        self.num_aborts += 1
        self.may_end.set()


class Lender:
    def __init__(self) -> None:
        self.lent = 0

    def lend(self, bundle):
        self.lent += 1
        return {"ipc_handles": [{"GPU-1": ()}]}

    def take_back(self):
        self.lent = 0


def make_bundle(version: int = 1) -> WeightBundle:
    return WeightBundle.from_tensors([("a.weight", torch.ones(2, 3)), ("b.bias", torch.ones(5))], version=version)


def make_courier(*broadcasters: Broadcaster, ask=lambda version: MEETING, end_s: float = 10) -> Courier:
    return Courier(
        "nccl", address="10.0.0.1", ask_meeting=ask, make_broadcaster=iter(broadcasters).__next__, end_s=end_s
    )


def test_an_offer_by_nccl_says_what_will_come_and_where_a_group_can_be_opened():
    bundle = make_bundle()
    offer = make_courier(Broadcaster()).offer(bundle)
    assert (offer.version, offer.checksum, offer.num_bytes) == (1, bundle.checksum, bundle.num_bytes)
    assert offer.update == {"names": ["a.weight", "b.bias"], "dtype_names": ["float32"] * 2, "shapes": [[2, 3], [5]]}
    assert (offer.address, offer.together) == ("10.0.0.1", True)
    assert offer.port > 1024


def test_the_learner_goes_on_while_the_samplers_are_not_there_yet():
    broadcaster, are_there = Broadcaster(), threading.Event()
    courier = make_courier(broadcaster, ask=lambda version: MEETING if are_there.wait(10) else None)
    courier.carry(make_bundle())
    assert broadcaster.sent == []
    are_there.set()
    courier.settle()
    assert (broadcaster.sent, broadcaster.num_aborts) == ([(1, 1)], 0)


def test_an_update_without_a_meeting_is_not_sent():
    broadcaster = Broadcaster()
    courier = make_courier(broadcaster, ask=lambda version: None)
    courier.carry(make_bundle())
    courier.settle()
    assert (broadcaster.sent, broadcaster.num_aborts) == ([], 0)


def test_a_broadcast_that_hangs_is_ended_and_the_next_update_has_a_broadcaster_of_its_own():
    hanging, fresh = Broadcaster(hangs=True), Broadcaster()
    courier = make_courier(hanging, fresh, end_s=0.05)
    courier.carry(make_bundle())
    courier.settle()
    assert hanging.num_aborts == 1
    courier.carry(make_bundle(2))
    courier.settle()
    assert fresh.sent == [(2, 1)]


@pytest.mark.parametrize("reason", ["broadcast", "meeting"])
def test_what_goes_wrong_on_the_way_is_left_to_the_conductor_and_the_group_is_left(reason, caplog):
    def ask(version):
        if reason == "meeting":
            raise StallError("no answer", role="learner")
        return MEETING

    broadcaster = Broadcaster(fails=True)
    courier = make_courier(broadcaster, ask=ask)
    courier.carry(make_bundle())
    courier.settle()
    assert broadcaster.num_aborts == 1
    assert "v1 was not broadcast" in caplog.text


def test_what_is_lent_by_ipc_is_taken_back_when_all_samplers_have_confirmed():
    lender = Lender()
    courier = Courier("ipc", address="here", ask_meeting=lambda version: None, lender=lender)
    bundle = make_bundle()
    offer = courier.offer(bundle)
    courier.carry(bundle)
    assert (lender.lent, offer.together) == (1, False)
    assert (offer.reaches("GPU-1"), offer.reaches("GPU-2")) == (True, False)
    courier.settle()
    assert lender.lent == 0
