"""A seeded random network over bare machines: everything that may go wrong does, and safety holds after every step.

Loss, repetition, reordering, partitions, crashes that lose unsaved state, slow saves, slow applies, snapshots,
transfers, and in half of the seeds changes of the membership: members come, vote, learn, go, and do not know it.
`Checker` asserts the safety properties; at the end the cluster is healed and must elect and converge.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pyraftkv.core.membership import ADD_LEARNER, ADD_VOTER, ADD_WITNESS, REMOVE, Change, Transition
from pyraftkv.core.messages import InstallSnapshot
from pyraftkv.core.ready import (
    Campaign,
    ForgetLeader,
    KeepPayloads,
    PeerUnreachable,
    Propose,
    ReadIndex,
    SnapshotSent,
    Tick,
    TransferLeadership,
)
from pyraftkv.core.types import LEADER, Membership
from tests.core.cluster import Cluster
from tests.core.machines import with_witness

STEPS = 2_000
MEMBERS_MAX = 9
"""Members that ever were: ids are never used again."""
VOTERS_MAX = 5
SEEDS_PER_TEST = 20
SEEDS_PER_TEST_SOAKING = 1_000


class Chaos:
    """Draws one step after another from a seed."""

    def __init__(self, seed: int, *, witness: bool = False) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        size = rng.choice((3, 3, 5))
        self.cluster = Cluster(
            size,
            seed=seed,
            membership=with_witness(size) if witness else None,
            heartbeat_ticks=rng.choice((1, 3)),
            append_bytes_max=rng.choice((100, 400, 1 << 20)),
            inflight_messages_max=rng.choice((1, 3, 64)),
            committed_bytes_max=rng.choice((1, 200, 1 << 20)),
            log_cache_bytes_max=rng.choice((1, 300, 1 << 20)),
            uncommitted_bytes_max=rng.choice((300, 1 << 20)),
            pre_vote=rng.random() < 0.7,
            check_quorum=rng.random() < 0.7,
        )
        self.loss = rng.choice((0.0, 0.02, 0.1))
        self.count = 0
        self.past_floor = 0
        """Snapshots of a witness that had no room for what is before them."""
        self.changing = rng.choice((0, 0, 4, 12))
        self.reads: dict[int, tuple[int, int]] = {}
        """Context to (node, what was committed anywhere when the read was asked)."""
        self.steps: dict[Callable[[], None], int] = {
            self.deliver: 80,
            self.repeat: 3,
            self.tick: 12,
            self.save: rng.choice((20, 60)),
            self.apply: rng.choice((10, 60)),
            self.fetch: 10,
            self.propose: 8,
            self.read: 3,
            self.crash_or_restart: rng.choice((0, 1, 3)),
            self.partition: rng.choice((0, 1, 3)),
            self.snapshot: rng.choice((4, 12) if witness else (0, 4)),
            self.transfer: rng.choice((0, 1)),
            self.unreachable: 1,
            self.campaign: rng.choice((0, 1)),
            self.forget: rng.choice((0, 1)),
            self.change: self.changing,
            self.calm: 1,
            self.squeeze: rng.choice((0, 6, 12)) if witness else 0,
        }
        """How often each step is taken: another mix for every seed."""

    def run(self) -> None:
        steps, weights = list(self.steps), list(self.steps.values())
        for step in self.rng.choices(steps, weights, k=STEPS):
            step()
            self.check_reads()
        self.heal()

    def node(self) -> int:
        """Return a member that is up, or 0."""
        alive = [node for node, member in self.cluster.members.items() if member.alive]
        return self.rng.choice(alive) if alive else 0

    def calm(self) -> None:
        """Let everything pending happen for a while, so that the cluster gets somewhere."""
        for _ in range(self.rng.randrange(4)):
            self.cluster.settle_once()

    def deliver(self) -> None:
        network = self.cluster.network
        if not network:
            return
        position = self.rng.randrange(min(len(network), 8)) if self.rng.random() < 0.3 else 0
        message = network[position]
        if self.rng.random() < self.loss:
            network.pop(position)
        else:
            self.cluster.deliver(position)
        sender = self.cluster.members[message.sender]
        if isinstance(message, InstallSnapshot) and sender.alive:
            self.cluster.feed(message.sender, SnapshotSent(message.to, self.rng.random() < 0.7))

    def repeat(self) -> None:
        if self.cluster.network:
            self.cluster.deliver(self.rng.randrange(len(self.cluster.network)), keep=True)

    def tick(self) -> None:
        if node := self.node():
            self.cluster.feed(node, Tick())

    def save(self) -> None:
        node = self.node()
        if node and self.cluster.members[node].saves:
            self.cluster.complete_save(node)

    def apply(self) -> None:
        node = self.node()
        if node and self.cluster.members[node].pages:
            self.cluster.apply_page(node)

    def fetch(self) -> None:
        node = self.node()
        if node and self.cluster.members[node].fetches:
            self.cluster.answer_fetch(node)

    def propose(self) -> None:
        if node := self.node():
            payloads = [b"%d" % (self.count + offset) for offset in range(self.rng.randrange(1, 5))]
            self.count += len(payloads)
            self.cluster.feed(node, Propose(payloads))

    def read(self) -> None:
        if node := self.node():
            context = len(self.reads) + 1
            self.reads[context] = (node, self.cluster.checker.commit_max)
            self.cluster.feed(node, ReadIndex(context))

    def check_reads(self) -> None:
        for node, member in self.cluster.members.items():
            for read in member.reads:
                asker, committed = self.reads[read.context]
                assert asker == node
                assert read.index >= committed, "a read is never older than what was committed when it was asked"
            member.reads.clear()

    def crash_or_restart(self) -> None:
        node = self.rng.choice(list(self.cluster.members))
        member = self.cluster.members[node]
        if member.alive:
            if self.rng.random() < 0.6:
                return
            self.cluster.crash(node, written=self.rng.randrange(len(member.saves) + 1))
        else:
            self.cluster.restart(node)

    def partition(self) -> None:
        if self.rng.random() < 0.7:
            self.cluster.heal()
        else:
            nodes = list(self.cluster.members)
            self.cluster.isolate(*self.rng.sample(nodes, self.rng.randrange(1, len(nodes))))

    def snapshot(self) -> None:
        node = self.node()
        if not node:
            return
        member = self.cluster.members[node]
        known = [meta.index for meta in (member.disk.snapshot, member.raft._log.snapshot) if meta]
        newest = max(known, default=0)  # One that was received may still be on its way to the disk.
        index = self.cluster.snapshot_index(node)
        if not (member.pages or index <= newest or member.disk.last_index < index):
            self.past_floor += member.config.witness and index > member.raft.floor
            self.cluster.take_snapshot(node, keep=self.rng.choice((0, 0, 3, 20)))
        member.lost_index = member.raft.lost_index

    def transfer(self) -> None:
        if leader := self.cluster.leader:
            self.cluster.feed(leader, TransferLeadership(self.rng.randrange(len(self.cluster.members) + 1)))

    def unreachable(self) -> None:
        if leader := self.cluster.leader:
            self.cluster.feed(leader, PeerUnreachable(self.rng.choice(list(self.cluster.members))))

    def campaign(self) -> None:
        if node := self.node():
            self.cluster.feed(node, Campaign())

    def forget(self) -> None:
        if node := self.node():
            self.cluster.feed(node, ForgetLeader())

    def change(self) -> None:
        """Propose a change that may or may not fit by the time it is applied, to a leader or to anyone."""
        rng, cluster = self.rng, self.cluster
        node = cluster.leader if rng.random() < 0.8 else self.node()
        if not node:
            return
        membership = cluster[node].membership
        leave = membership.is_joint if rng.random() < 0.9 else rng.random() < 0.5
        changes = [] if leave else self.draw_changes(membership)
        cluster.change(node, *changes, transition=rng.choice(list(Transition)))

    def draw_changes(self, membership: Membership) -> list[Change]:
        """Return changes of one to four members, a new one among them now and then."""
        rng, cluster = self.rng, self.cluster
        if len(cluster.members) < MEMBERS_MAX and rng.random() < 0.5:
            new = len(cluster.members) + 1
            cluster.add(new, membership=Membership(), witness=bool(cluster.first.witnesses) and rng.random() < 0.3)
        known = sorted(membership.members)
        fresh = [node for node in cluster.members if node > max(known, default=0)]
        nodes = rng.sample(known + fresh, min(rng.choice((1, 1, 2, 4)), len(known + fresh)))
        changes: list[Change] = []
        voters = len(membership.voters - set(nodes))
        for node in nodes:
            kinds = [ADD_VOTER] if voters < VOTERS_MAX else []
            kinds += [ADD_LEARNER, REMOVE] if voters > 0 else []
            if cluster.members[node].config.witness:
                kinds = [REMOVE if node in membership.members and rng.random() < 0.7 else ADD_WITNESS]
            changes.append(Change(rng.choice(kinds), node))
            voters += changes[-1].kind in {ADD_VOTER, ADD_WITNESS}
        return changes

    def squeeze(self) -> None:
        """Let a witness's room come to an end, or be there again."""
        node = self.node()
        if node and self.cluster.members[node].config.witness:
            self.cluster.feed(node, KeepPayloads(self.rng.random() < 0.6))

    def heal(self) -> None:
        """Liveness: everyone up, nothing lost, and soon one leader, one log, one state."""
        cluster = self.cluster
        cluster.heal()
        cluster.network.clear()
        for node, member in cluster.members.items():
            if not member.alive:
                cluster.restart(node)
            else:
                for to in cluster.members:
                    cluster.feed(node, SnapshotSent(to, ok=False))  # Those under way were lost with the network.
        cluster.settle()
        for _ in range(60):
            cluster.tick(count=10)
            if self.is_agreed():
                break
        leader = cluster.leader
        assert leader, "a healed cluster elects"
        membership = cluster[leader].membership
        for node in cluster.members.keys() - membership.members:
            cluster.crash(node)  # Nobody needs its vote any more, and it may not know that it was removed.
        cluster.feed(leader, Propose([b"healed"]))
        cluster.settle()
        cluster.tick(count=4)
        state = cluster.members[leader].state
        assert state[-1] == b"healed"
        for node in membership.members:
            if node not in membership.witnesses:
                assert cluster.members[node].state == state, f"{node} converges"
            assert cluster[node].applied == len(state), f"{node} has applied everything"
            assert cluster[node].membership == membership
        assert not membership.auto_leave, "what is to be left by itself is left"
        assert [raft.id for raft in cluster.rafts() if raft.role is LEADER] == [leader]

    def is_agreed(self) -> bool:
        """Return whether all members of the leader's configuration follow it, and have the same configuration."""
        cluster = self.cluster
        if not cluster.leader or cluster.members[cluster.leader].config.witness:
            return False
        membership = cluster[cluster.leader].membership
        rafts = [cluster[node] for node in membership.members]
        return all((raft.leader, raft.membership) == (cluster.leader, membership) for raft in rafts)


@pytest.mark.no_cover
@pytest.mark.parametrize("first", range(0, 10_000, 1_000))
def test_safety_holds_after_every_step_and_a_healed_cluster_converges(first: int, soak: bool) -> None:
    """Whatever the network, the disks and the clocks do; a failure names its seed."""
    for seed in range(first, first + (SEEDS_PER_TEST_SOAKING if soak else SEEDS_PER_TEST)):
        try:
            Chaos(seed).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.no_cover
@pytest.mark.parametrize("first", range(0, 5_000, 1_000))
def test_safety_holds_with_a_witness_too(first: int, soak: bool) -> None:
    """The same with a witness that comes and goes, and whose room comes to an end at any time."""
    past_floor = 0
    for seed in range(first, first + (SEEDS_PER_TEST_SOAKING if soak else SEEDS_PER_TEST)):
        chaos = Chaos(seed, witness=True)
        try:
            chaos.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed} with a witness: {error}") from error
        past_floor += chaos.past_floor
    assert past_floor > 0


def test_a_seed_repeats_its_run() -> None:
    """The same seed gives the same logs, terms and messages."""
    first, second = Chaos(7), Chaos(7)
    first.run()
    second.run()
    for node in first.cluster.members:
        assert first.cluster[node].status() == second.cluster[node].status()
        assert first.cluster.members[node].state == second.cluster.members[node].state
