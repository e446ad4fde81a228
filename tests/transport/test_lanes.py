"""Every message has a lane, and nothing urgent shares one with what is large."""

from __future__ import annotations

import typing

from pyraftkv.codec import PeerMessage
from pyraftkv.transport.lanes import LANE_OF, Lane


def test_every_message_has_a_lane() -> None:
    """One that is added to the contract must be given one."""
    assert set(LANE_OF) == set(typing.get_args(PeerMessage))


def test_messages_that_grow_stay_off_the_control_lane() -> None:
    """Heartbeats and votes never wait for entries or snapshots."""
    control = {kind.__name__ for kind, lane in LANE_OF.items() if lane is Lane.CONTROL}
    assert control == {
        "VoteRequest",
        "VoteResponse",
        "Heartbeat",
        "HeartbeatResponse",
        "ReadIndexRequest",
        "ReadIndexResponse",
        "TimeoutNow",
        "GenesisOffer",
        "CommitNotice",
        "TransferRequest",
        "StateHash",
        "Pledge",
        "LeaseAsk",
        "LeaseTold",
    }
