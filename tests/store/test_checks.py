"""The hash of the state: a function of the state alone, on every Python; see also `World`, which compares it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from random import Random

import pytest

from pyraftkv.store import Store
from pyraftkv.store.checks import check_of, checks_of
from pyraftkv.store.commands import Compact, DeleteRange, PutBatch, PutKey, Transaction
from tests.store.world import finish, restore

MINORS = range(11, 15)
"""Of the Pythons to look for: those that are supported."""

PROGRAM = """
import random, sys
from pyraftkv.store import Store, Work
from pyraftkv.store.commands import Compact, DeleteRange, PutKey, Transaction
rng, store = random.Random(7), Store(step_keys_max=int(sys.argv[1]))
def apply(command):
    result = store.apply(command)
    while isinstance(result, Work) and result.step(int(sys.argv[1])) is None:
        pass
for i in range(400):
    key = b"%03d" % (i * i % 97)
    apply(PutKey(key, b"v" * (i % 300)))
    if i % 9 == 0:
        apply(DeleteRange(b"%03d" % (i % 97), b"%03d" % (i % 97 + 3)))
    if i % 20 == 0:
        apply(Transaction([], [PutKey(b"%03d" % n, b"t") for n in range(5)]))
apply(Compact(200))
hashed = store.hash_kv()
while isinstance(hashed, Work):
    hashed = hashed.step(int(sys.argv[1])) or hashed
print(store.state_hash, hashed.hash)
"""
HASHES = "2575093318699128663 8713006025525298821"
"""What the program prints, on whatever Python: members of one cluster may run on different ones."""


def find(name: str) -> str | None:
    """Return where the Python of that name is and runs, on the path or where pyenv keeps those it does not show."""
    kept = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/3.*/bin/{name}"))
    for path in [*filter(None, [shutil.which(name)]), *map(str, kept)]:
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return None


def pythons() -> dict[str, str | None]:
    """Return the CPythons from 3.11 to 3.14 by name, and where they are; None for those that are missing."""
    own = f"python3.{sys.version_info.minor}"
    return {name: find(name) for name in map("python3.{}".format, MINORS)} | {own: sys.executable}


PYTHONS = pythons()


@pytest.mark.parametrize("name", PYTHONS)
def test_every_python_comes_to_the_same(name):
    """Whatever the Python and the slices, the same commands lead to the same hashes."""
    python = PYTHONS[name]
    if python is None:
        pytest.skip(f"{name} is not installed here")
    packages = os.pathsep.join([str(Path(__file__).parents[2]), sysconfig.get_path("purelib")])
    for slice_keys in ("1", "1000"):
        done = subprocess.run(
            [python, "-c", PROGRAM, slice_keys],
            env={"PYTHONPATH": packages, "PYTHONHASHSEED": slice_keys},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == HASHES


FIELDS = (b"key", b"value", 7, 5, 2, 0)


@pytest.mark.parametrize(
    "other",
    [
        (b"kex", b"value", 7, 5, 2, 0),
        (b"key", b"valve", 7, 5, 2, 0),
        (b"key", b"", 7, 5, 2, 0),
        (b"keyv", b"alue", 7, 5, 2, 0),
        (b"key", b"value", 8, 5, 2, 0),
        (b"key", b"value", 7, 6, 2, 0),
        (b"key", b"value", 7, 5, 3, 0),
        (b"key", b"value", 7, 5, 2, 1),
        (b"key", b"value", 7, 5, 2, 1 << 62),
        (b"key", b"value", 5, 7, 2, 0),
    ],
)
def test_every_field_counts(other):
    """A version that differs in any field has another check."""
    assert check_of(*FIELDS) != check_of(*other)


def test_an_exchange_is_seen():
    """Two values that are exchanged between two keys change the sum, although CRCs are linear."""
    rng = Random(3)
    for _ in range(200):
        first, second, one, other = (rng.randbytes(8) for _ in range(4))
        right = check_of(first, one, 2, 2, 1, 0) + check_of(second, other, 2, 2, 1, 0)
        wrong = check_of(first, other, 2, 2, 1, 0) + check_of(second, one, 2, 2, 1, 0)
        assert right != wrong


def test_the_way_to_a_state_does_not_count():
    """Batches, transactions, compactions won back or not, and snapshots: equal states have equal hashes."""
    one, other = Store(), Store(step_keys_max=1)
    one.apply(PutBatch([b"a", b"1", b"b", b"2", b"a", b"3"]))
    for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"3")):
        finish(other.apply(Transaction([], [PutKey(key, value)])))
    for store in (one, other):
        finish(store.apply(DeleteRange(b"b")))
        finish(store.apply(Compact(4)))
    before = other.state_hash
    finish(one.compaction())
    with one.snapshot() as taken:
        twin = restore(list(taken))

    assert one.state_hash == other.state_hash == twin.state_hash
    assert finish(one.hash_kv()) == finish(other.hash_kv()) == finish(twin.hash_kv())
    twin.apply(PutKey(b"a", b"3"))
    assert twin.state_hash != before


def test_many_checks_are_those_of_each():
    """At once or one by one, with leases and tombstones, and revisions of more than 32 bits."""
    rows = [FIELDS, (b"k", b"", 9, 0, 0, 0), (b"k", b"v" * 300, 1 << 40, 1 << 33, 1 << 20, 1 << 62)]
    assert checks_of(*zip(*rows, strict=True)) == [check_of(*row) for row in rows]
