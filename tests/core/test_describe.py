"""One line per thing, for traces."""

from __future__ import annotations

import pytest

from pyraftkv.core import describe_entry, describe_membership, describe_message, describe_ready
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import EntryFetch, ReadReady, Ready, Save, SoftState
from pyraftkv.core.types import LEADER, MEMBERSHIP, Entry, HardState, Membership
from tests.core.machines import entries, snapshot


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (VoteRequest(2, 1, 3, 5, 2, True, False), "1->2 VoteRequest term=3 last=5@2 pre"),
        (VoteRequest(2, 1, 3, 5, 2, False, True), "1->2 VoteRequest term=3 last=5@2 by_transfer"),
        (VoteResponse(2, 1, 3, False, True), "1->2 VoteResponse term=3 granted"),
        (VoteResponse(2, 1, 3, True, False), "1->2 VoteResponse term=3 refused pre"),
        (AppendRequest(2, 1, 3, 5, 2, [], 4), "1->2 AppendRequest term=3 prev=5@2 commit=4 []"),
        (
            AppendRequest(2, 1, 3, 5, 2, entries(6, 3), 4),
            "1->2 AppendRequest term=3 prev=5@2 commit=4 [6@3 '6@3']",
        ),
        (
            AppendRequest(2, 1, 3, 5, 2, entries(6, 3, 3, 3), 4),
            "1->2 AppendRequest term=3 prev=5@2 commit=4 [6@3..8@3]",
        ),
        (AppendResponse(2, 1, 3, 5, False, 0, 0), "1->2 AppendResponse term=3 accepted index=5"),
        (AppendResponse(2, 1, 3, 5, True, 4, 2), "1->2 AppendResponse term=3 rejected prev=5 hint=4@2"),
        (Heartbeat(2, 1, 3, 4, 7), "1->2 Heartbeat term=3 commit=4 context=7"),
        (HeartbeatResponse(2, 1, 3, 7), "1->2 HeartbeatResponse term=3 context=7"),
        (InstallSnapshot(2, 1, 3, snapshot(5, 2)), "1->2 InstallSnapshot term=3 snapshot 5@2 voters=[1, 2, 3]"),
        (ReadIndexRequest(2, 1, 3, 7), "1->2 ReadIndexRequest term=3 context=7"),
        (ReadIndexResponse(2, 1, 3, 7, 5), "1->2 ReadIndexResponse term=3 context=7 index=5"),
        (ForwardedProposals(2, 1, 3, [b"a", b"b"]), "1->2 ForwardedProposals term=3 payloads=2"),
        (
            ForwardedMembership(2, 1, 3, b"abc", False),
            "1->2 ForwardedMembership term=3 payload of 3 bytes",
        ),
        (
            ForwardedMembership(2, 1, 3, b"", True),
            "1->2 ForwardedMembership term=3 payload of 0 bytes leave",
        ),
        (CommitNotice(2, 1, 3, 5, 2), "1->2 CommitNotice term=3 committed=5@2"),
        (TimeoutNow(2, 1, 3), "1->2 TimeoutNow term=3"),
    ],
)
def test_every_message_has_a_line(message: Message, line: str) -> None:
    """Sender, receiver, name, term, and what matters of the rest."""
    assert describe_message(message) == line


def test_an_entry_shows_the_start_of_its_payload() -> None:
    """Long payloads are cut."""
    assert describe_entry(Entry(3, 2, b"x")) == "3@2 'x'"
    assert describe_entry(Entry(3, 2, b"x" * 30, MEMBERSHIP)) == f"3@2 MEMBERSHIP '{'x' * 24}'... (30 bytes)"


def test_a_configuration_shows_what_is_not_empty() -> None:
    """Voters always; the rest when there is any."""
    assert describe_membership(Membership()) == "voters=[]"
    assert describe_membership(Membership(voters=frozenset({2, 1}), learners=frozenset({4}))) == (
        "voters=[1, 2] learners=[4]"
    )
    joint = Membership(voters=frozenset({1}), outgoing=frozenset({1, 2}), learners_next=frozenset({2}), auto_leave=True)
    assert describe_membership(joint) == "voters=[1] outgoing=[1, 2] learners_next=[2] auto_leave"


def test_a_ready_has_a_line_for_each_thing_that_it_asks_for() -> None:
    """An empty one asks for nothing."""
    assert describe_ready(Ready()) == "nothing"
    ready = Ready(
        messages=[TimeoutNow(2, 1, 3)],
        save=Save(4, HardState(3, 1, 2), entries(6, 3, 3), snapshot(5, 2)),
        messages_after_save=[VoteResponse(2, 1, 3, False, True)],
        after_save=4,
        restore=snapshot(5, 2),
        committed=entries(6, 3, 3),
        reads=[ReadReady(7, 6)],
        fetches=[EntryFetch(1, 3, 100)],
        soft_state=SoftState(LEADER, 1, 3),
        rejected_proposals=[b"a"],
        again=True,
    )
    assert describe_ready(ready).splitlines() == [
        "now LEADER leader=1 term=3",
        "send 1->2 TimeoutNow term=3",
        "save 4 term=3 vote=1 commit=2 snapshot 5@2 voters=[1, 2, 3] [6@3..7@3]",
        "after save 4 send 1->2 VoteResponse term=3 granted",
        "restore snapshot 5@2 voters=[1, 2, 3]",
        "apply [6@3..7@3]",
        "read context=7 index=6",
        "fetch [1, 3) bytes_max=100",
        "reject 1 proposals",
        "call again",
    ]
    assert describe_ready(Ready(save=Save(1, None, [], None))) == "save 1"
