"""One bare machine at a time: build it with a log, feed it, complete its saves, look at what it wants."""

from __future__ import annotations

import random
from typing import Any

from pyraftkv.core import Config, Raft, Stored
from pyraftkv.core.messages import AppendRequest, AppendResponse, Message, VoteResponse
from pyraftkv.core.ready import Applied, Campaign, Input, Ready, Saved
from pyraftkv.core.types import LEADER, Entry, HardState, Membership, SnapshotMeta

ELECTION_TICKS = 10


def voters(*nodes: int) -> Membership:
    """Return a configuration of voters alone."""
    return Membership(voters=frozenset(nodes))


def with_witness(size: int) -> Membership:
    """Return a configuration of ``size`` voters, the last of which is a witness."""
    return Membership(voters=frozenset(range(1, size + 1)), witnesses=frozenset({size}))


def entries(first: int, *terms: int) -> list[Entry]:
    """Return entries from index ``first`` on, one per term, with payloads that name them."""
    return [Entry(first + offset, term, b"%d@%d" % (first + offset, term)) for offset, term in enumerate(terms)]


def snapshot(index: int, term: int, *nodes: int) -> SnapshotMeta:
    """Return a snapshot of a cluster of ``nodes``, three of them by default."""
    return SnapshotMeta(index, term, voters(*(nodes or (1, 2, 3))))


def machine(
    *terms: int,
    node: int = 1,
    size: int = 3,
    term: int = 0,
    vote: int = 0,
    commit: int = 0,
    membership: Membership | None = None,
    **knobs: Any,
) -> Raft:
    """Return a follower whose log holds one entry per term given; ``term`` is at least the last of them."""
    term = max(term, *terms, 0) if terms else term
    stored = Stored(
        HardState(term, vote, commit),
        None,
        entries(1, *terms),
        1,
        voters(*range(1, size + 1)) if membership is None else membership,
    )
    config = Config(id=node, **{"heartbeat_ticks": 1, "election_ticks": ELECTION_TICKS, "pre_vote": False, **knobs})
    return Raft(config, stored=stored, rng=random.Random(node))


def step(raft: Raft, *inputs: Input) -> Ready:
    """Feed the machine and return what it wants; nothing is saved or applied."""
    raft.feed(inputs)
    ready = raft.ready()
    raft.check()
    return ready


def step_all(raft: Raft, *inputs: Input) -> list[Message]:
    """Feed the machine, save and apply whatever it wants until it rests, and return all that it sent."""
    sent: list[Message] = []
    todo: list[Input] = list(inputs)
    for _ in range(1_000):
        ready = step(raft, *todo)
        sent += ready.messages + ready.messages_after_save
        todo = [Saved(ready.save.number)] if ready.save is not None else []
        if ready.committed:
            todo.append(Applied(ready.committed[-1].index))
        if not todo:
            return sent
    raise AssertionError("the machine does not come to rest")


def lead(raft: Raft) -> Raft:
    """Make the machine the leader of its next term, by the votes of everyone; its empty entry is saved."""
    step_all(raft, Campaign())
    for node in sorted(raft.membership.voters | raft.membership.outgoing):
        if raft.role is not LEADER and node != raft.id:
            step_all(raft, VoteResponse(raft.id, node, raft.term, False, True))
    assert raft.role is LEADER
    return raft


def ack(raft: Raft, sender: int, index: int, *, term: int | None = None) -> AppendResponse:
    """Return an accepted append response of ``raft``'s term."""
    return AppendResponse(raft.id, sender, raft.term if term is None else term, index, False, 0, 0)


def append(
    raft: Raft, prev_index: int, prev_term: int, *terms: int, term: int | None = None, sender: int = 2, commit: int = 0
) -> AppendRequest:
    """Return an append request with entries after ``prev_index``, one per term given."""
    term = raft.term if term is None else term
    return AppendRequest(raft.id, sender, term, prev_index, prev_term, entries(prev_index + 1, *terms), commit)


def only(messages: list[Message], kind: type) -> list[Any]:
    """Return the messages of one kind."""
    return [message for message in messages if type(message) is kind]


def log_terms(raft: Raft) -> list[int | None]:
    """Return the terms of the whole log, from index 1."""
    return [raft._log.term_at(index) for index in range(1, raft.last_index + 1)]
