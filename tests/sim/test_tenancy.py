"""Leases in random runs: what is known of when they may end, and that a run judges by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyraftkv.sim.check import Finding, History, Outcome, check_revisions
from pyraftkv.sim.check.history import Request
from pyraftkv.sim.run import Run
from pyraftkv.sim.swarm import Swarm, Workload, with_tenants
from pyraftkv.sim.tenancy import Tenancy
from pyraftkv.store.commands import GrantLease, PutKey, RangeQuery, RevokeLease
from pyraftkv.store.values import LeaseGranted, LeaseRevoked, PutResult, RangeResult, Result

LEASE = 7


class World:
    """A tenancy in a world whose time passes when it is told to."""

    def __init__(self, *, slowest: float = 1.0) -> None:
        self.history = History()
        self.time = 0.0
        self.broken: list[str] = []
        self._due: list[tuple[float, Callable[[int], object], int]] = []
        self.tenancy = Tenancy(
            self.history,
            now=lambda: self.time,
            at=self._at,
            slowest=slowest,
            violated=self._violated,
        )

    def _at(self, when: float, callback: Callable[[int], object], lease: int) -> None:
        self._due.append((when, callback, lease))

    def _violated(self, _: str, text: str) -> None:
        self.broken.append(text)

    def pass_to(self, time: float) -> None:
        """Let time pass, and what is due happen."""
        while self._due and (due := min(self._due, key=lambda each: each[0]))[0] <= time:
            self._due.remove(due)
            self.time, callback, lease = due
            callback(lease)
        self.time = time

    def done(self, request: Request, result: Result) -> None:
        """Something is asked and answered now."""
        self.history.ok(self.history.begin("c", request, self.time), result, self.time)

    def ends(self) -> list[tuple[float, Outcome]]:
        """When the history says that leases may have ended."""
        return [(op.invoked, op.outcome) for op in self.history.ops if isinstance(op.request, RevokeLease)]


def held(*, slowest: float = 1.0) -> World:
    """Return a world with a lease of five seconds, and a key that was put under it at revision 2."""
    world = World(slowest=slowest)
    world.done(GrantLease(LEASE, 5), LeaseGranted(1, LEASE, 5))
    world.tenancy.granted(LEASE, 5, sent_at=0.0)
    world.done(PutKey(b"k", b"v", LEASE), PutResult(2))
    return world


def test_a_lease_may_end_when_its_time_has_passed_by_the_fastest_clock() -> None:
    """And it may do so once."""
    world = held(slowest=0.9)
    world.pass_to(4.4)
    assert world.ends() == []
    world.pass_to(20.0)
    assert world.ends() == [(4.5, Outcome.UNKNOWN)]


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    """Whenever it was answered."""
    world = held()
    world.pass_to(4.0)
    world.tenancy.renewed(LEASE, 5, sent_at=3.0)
    world.pass_to(20.0)
    assert world.ends() == [(8.0, Outcome.UNKNOWN)]


def test_a_renewal_that_is_answered_late_says_that_the_lease_had_not_ended() -> None:
    """If that is still known when the answer comes."""
    world = held()
    world.pass_to(6.0)
    world.tenancy.renewed(LEASE, 5, sent_at=4.0)
    world.pass_to(20.0)
    assert world.ends() == [(5.0, Outcome.FAILED), (9.0, Outcome.UNKNOWN)]


def test_an_answer_that_comes_after_its_own_time_says_nothing() -> None:
    """The lease may have lived until it was renewed, and ended since."""
    world = held()
    world.pass_to(10.0)
    world.tenancy.renewed(LEASE, 5, sent_at=4.0)
    assert world.ends() == [(5.0, Outcome.UNKNOWN)]


def test_a_key_that_vanishes_when_its_lease_may_have_ended_is_right() -> None:
    """Nobody said that he did it."""
    world = held()
    world.pass_to(6.0)
    world.done(RangeQuery(b"k"), RangeResult(3, [], more=False, count=0))
    assert Finding.RIGHT is check_revisions(world.history).finding


def test_a_key_that_vanishes_before_its_lease_may_have_ended_is_wrong() -> None:
    """Nor could anybody have done it."""
    world = held()
    world.pass_to(4.9)
    world.done(RangeQuery(b"k"), RangeResult(3, [], more=False, count=0))
    world.pass_to(6.0)
    assert Finding.WRONG is check_revisions(world.history).finding


@pytest.mark.parametrize(("left", "finding"), [(1, Finding.WRONG), (0, Finding.RIGHT)])
def test_all_keys_of_a_lease_vanish_at_one_revision(left: int, finding: Finding) -> None:
    """None of them stays."""
    world = held()
    world.done(PutKey(b"l", b"v", LEASE), PutResult(3))
    world.pass_to(6.0)
    world.done(RangeQuery(b"a", b"z", count_only=True), RangeResult(4, [], more=False, count=left))
    assert finding is check_revisions(world.history).finding


def test_a_revocation_makes_the_revision_that_it_names_or_none() -> None:
    """Its answer is the same if there was no key."""
    world = held()
    world.done(RevokeLease(LEASE), LeaseRevoked(3))
    world.done(GrantLease(LEASE + 1, 5), LeaseGranted(3, LEASE + 1, 5))
    world.done(RevokeLease(LEASE + 1), LeaseRevoked(3))
    world.done(RangeQuery(b"k"), RangeResult(3, [], more=False, count=0))
    assert Finding.RIGHT is check_revisions(world.history).finding


def test_nobody_is_told_that_a_lease_is_gone_which_must_live() -> None:
    """Unless its owner ends it himself."""
    world = held()
    world.pass_to(4.0)
    world.tenancy.missed(LEASE)
    assert world.broken == ["lease 7 is gone at 4.000, it lives until 5.000"]
    world.tenancy.revoking(LEASE)
    world.tenancy.missed(LEASE)
    world.pass_to(6.0)
    world.tenancy.missed(LEASE)
    assert len(world.broken) == 1


def test_leases_are_held_end_and_are_revoked_in_a_run() -> None:
    """Some by their owners, some by nobody: then keys vanish with them."""
    swarm = with_tenants(Swarm(workload=Workload(operations_per_second=10)), 2, checkpoint_seconds=3.0)
    with Run(4, seconds=20, swarm=swarm) as run:
        run.run()
        revoked = [op for op in run.sim.history.ops if isinstance(op.request, RevokeLease)]
        assert run.tenancy.count > 10
    assert {op.client == "time" for op in revoked if op.outcome is not Outcome.FAILED} == {True, False}
    events = [each for watch in run.sim.history.watches for d in watch.deliveries for each in d.events]
    assert any(event.kv.lease for event in events)
