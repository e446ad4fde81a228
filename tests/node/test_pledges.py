"""What members tell each other of what they have for good."""

from __future__ import annotations

from pyraftkv.codec import PeerMessage
from pyraftkv.core.types import Membership
from pyraftkv.node.pledges import PLEDGE_SECONDS, Pledges
from pyraftkv.protocol import Pledge
from tests.core.machines import append, machine, step_all
from tests.node.support import asynchronous, cluster_of, until


def test_all_others_are_told_again_and_again() -> None:
    """Learners and witnesses, too; of what there is at that moment."""
    raft = machine(1, 1, term=1)
    raft.membership = Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4}), witnesses=frozenset({3}))
    sent: list[PeerMessage] = []
    pledges = Pledges(raft, send=sent.extend)
    pledges.tend(100.0)
    pledges.tend(100.0 + PLEDGE_SECONDS - 0.1)
    assert sent == [Pledge(other, 1, 1, 0) for other in (2, 3, 4)]
    sent.clear()
    step_all(raft, append(raft, 2, 1, term=2, commit=2))
    pledges.tend(100.0 + PLEDGE_SECONDS)
    assert sent == [Pledge(other, 1, 2, 2) for other in (2, 3, 4)]


@asynchronous
async def test_every_member_hears_of_every_other() -> None:
    """Soon after the start."""
    async with cluster_of(3) as cluster:
        await cluster.leader.put("k", "v")
        tables = [node._member.peers._pledges for node in cluster if node._member is not None]
        await until(lambda: [sorted(table) for table in tables] == [[2, 3], [1, 3], [1, 2]])
