from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyraftkv.store import Restorer, Store, machine
from pyraftkv.store.commands import Compact, DeleteRange, PutKey
from pyraftkv.store.pages import RECORD_BYTES
from tests.store import generators
from tests.store.world import World


@pytest.mark.no_cover
@pytest.mark.usefixtures("tiny_bounds")
def test_store_equals_its_twin(soak):
    """Whatever is asked in whatever order and slices, the store answers as the plainest implementation does."""
    for seed in range(2_000 if soak else 60):
        world = World(seed)
        try:
            for _ in range(300):
                world.step()
            world.close()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


ACTIONS = ("watch", "advance", "take", "step_compaction", "compact", "continue_reads", "hash_kv")


class StoreMachine(RuleBasedStateMachine):
    """The same, with rules that Hypothesis can shorten to the shortest sequence that fails."""

    @rule(rng=st.randoms(use_true_random=False))
    def start(self, rng):
        """Begin a new world."""
        if not hasattr(self, "world"):
            self.world = World(rng)

    @precondition(lambda self: hasattr(self, "world"))
    @rule(rng=st.randoms(use_true_random=False))
    def apply(self, rng):
        """Apply a command."""
        self.world.apply(generators.command(rng))

    @precondition(lambda self: hasattr(self, "world"))
    @rule(rng=st.randoms(use_true_random=False), back=st.integers(-1, 5))
    def read(self, rng, back):
        """Read at some revision."""
        self.world.read(generators.query(rng, self.world.model.revision - back))

    @precondition(lambda self: hasattr(self, "world"))
    @rule(action=st.sampled_from(ACTIONS))
    def act(self, action):
        """Watch, distribute, take, compact."""
        getattr(self.world, action)()

    @precondition(lambda self: hasattr(self, "world"))
    @rule()
    def snapshot(self):
        """Pin a snapshot, or walk those that are pinned."""
        if not self.world.snapshots:
            self.world.open_snapshot(self.world.model.revision)
        self.world.walk_snapshots()

    @invariant()
    def consistent(self):
        """Every structure holds its promises."""
        if hasattr(self, "world"):
            self.world.store.check()

    def teardown(self):
        """Compare everything."""
        if hasattr(self, "world"):
            self.world.close()


@pytest.mark.usefixtures("tiny_bounds")
class TestStoreMachine(StoreMachine.TestCase):
    """Runs the machine."""

    settings = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True)


def test_looking():
    """The properties and the repr tell the state."""
    store = Store()
    assert (store.revision, store.published_revision, store.compact_revision) == (1, 1, 0)
    store.apply(PutKey(b"k", b"v"))
    assert (store.revision, store.key_count, store.size_bytes) == (2, 1, 74)
    assert repr(store) == "<Store 1 keys at revision 2, compacted at 0>"
    assert machine.STEP_KEYS_MAX == 512


def test_what_is_in_use_is_what_compaction_leaves():
    """Superseded versions and deletions are history; a snapshot knows as much of it as the store that it is of."""
    store = Store()
    for number in range(60):
        store.apply(PutKey(b"k%d" % (number % 7), b"v" * number))
    store.apply(DeleteRange(b"k3"))
    store.apply(PutKey(b"k3", b"again"))
    live = [store.get(b"k%d" % number) for number in range(7)]
    in_use = sum(RECORD_BYTES + len(kv.key) + len(kv.value) for kv in live)
    assert store.in_use_bytes == in_use < store.size_bytes
    restorer = Restorer()
    snapshot = store.snapshot()
    for chunk in snapshot:
        restorer.feed(chunk)
    snapshot.close()
    restored = restorer.finish()
    assert (restored.in_use_bytes, restored.size_bytes) == (store.in_use_bytes, store.size_bytes)
    store.apply(Compact(store.revision))
    store.advance()
    while (work := store.compaction()) is not None and work.step(100) is None:
        pass
    assert store.in_use_bytes == store.size_bytes == in_use
