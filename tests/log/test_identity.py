"""Identity slots: one may be damaged, a boot count never repeats, a binding is never forgotten."""

from __future__ import annotations

import errno
import zlib
from random import Random

import pytest

from pyraftkv.errors import ForeignDataDir, StorageFailed, UnsupportedFormat
from pyraftkv.log.base import Identity
from pyraftkv.log.identity import SLOT_NAMES, IdentityFile
from pyraftkv.sim.disk import DiskFaults, SimFS
from tests.log.disks import blank, fail, heal, trace


def load(fs) -> IdentityFile:
    """What a start reads."""
    file = IdentityFile(fs, "/data")
    file.load()
    return file


def make(boots: int) -> SimFS:
    """A directory that was started that often."""
    fs = blank()
    fs.make_dir("/data")
    file = load(fs)
    file.mint(Random(1))
    for _ in range(boots):
        load(fs).count_boot()
    return fs


def test_a_new_identity_is_bound_to_nothing():
    """It has an incarnation, and has never started."""
    identity = load(make(0)).identity
    assert identity == Identity(0, 0, identity.incarnation, 0)
    assert identity.incarnation != 0


def test_boots_are_counted_one_by_one():
    """Each start is one more."""
    assert load(make(5)).identity.boot_count == 5


@pytest.mark.parametrize("slot", SLOT_NAMES)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.parametrize("boots", [4, 5])
def test_a_damaged_slot_falls_back_to_the_other(slot, damage, boots):
    """Whichever slot is lost, the identity stays, and no boot count is used twice."""
    fs = make(boots)
    before = load(fs).identity
    path = f"/data/{slot}"
    data = bytearray(fs.disk.file(path))
    if damage == "flip":
        data[30] ^= 1
        fs.disk.damage(path, data)
    elif damage == "cut":
        fs.disk.damage(path, data[:100])
    else:
        fs.unlink(path)
    after = load(fs)
    assert after.identity.incarnation == before.incarnation
    booted = after.count_boot()
    assert booted.boot_count > before.boot_count
    assert load(fs).count_boot().boot_count == booted.boot_count + 1


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_a_slot_that_cannot_be_read_falls_back_to_the_other(slot):
    """A sector that the disk gives up is like one that it gives back wrong; but for any other error nobody guesses."""
    fs = make(4)
    before = load(fs).identity
    fail(fs, lambda operation, path: errno.EMFILE if (operation, path) == ("pread", f"/data/{slot}") else 0)
    with pytest.raises(OSError, match="simulated"):
        load(fs)
    fs.disk.fault = DiskFaults(unreadable_sectors=frozenset({(f"/data/{slot}", 0)}))
    after = load(fs)
    assert after.unreadable == [slot]
    booted = after.count_boot()
    assert (booted.incarnation, booted.boot_count > before.boot_count) == (before.incarnation, True)


def test_two_slots_that_cannot_be_read_are_an_error_of_the_disk():
    """They may be readable tomorrow, so they are no damage, and nothing is minted in their place."""
    fs = make(4)
    fail(fs, lambda operation, _path: errno.EIO if operation == "pread" else 0)
    with pytest.raises(OSError, match="simulated"):
        load(fs)
    heal(fs)
    assert load(fs).identity.boot_count == 4


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_a_binding_survives_the_loss_of_either_slot(slot):
    """Both slots learn the cluster before `bind` returns."""
    fs = make(1)
    bound = load(fs).bind(cluster_id=7, member_id=3)
    assert (bound.cluster_id, bound.member_id, bound.boot_count) == (7, 3, 1)
    fs.unlink(f"/data/{slot}")
    assert load(fs).identity == bound


def test_binding_again_changes_nothing_and_binding_otherwise_is_refused():
    """A directory belongs to one member of one cluster for good."""
    fs = make(1)
    file = load(fs)
    bound = file.bind(cluster_id=7, member_id=3)
    operations = fs.disk.operations
    assert file.bind(cluster_id=7, member_id=3) == bound
    assert fs.disk.operations == operations
    for cluster, member in ((8, 3), (7, 4)):
        with pytest.raises(ForeignDataDir):
            file.bind(cluster_id=cluster, member_id=member)


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_a_recovery_changes_cluster_and_incarnation_and_keeps_the_mark(slot):
    """Both slots learn it before `rebind` returns; what the log's files are marked with stays, however often."""
    fs = make(1)
    bound = load(fs).bind(cluster_id=7, member_id=3)
    rebound = load(fs).rebind(cluster_id=8, incarnation=99)
    assert rebound == Identity(8, 3, 99, bound.boot_count, origin=bound.incarnation)
    again = load(fs).rebind(cluster_id=9, incarnation=100)
    assert (again.origin, again.mark, bound.mark) == (bound.incarnation,) * 3
    fs.unlink(f"/data/{slot}")
    assert load(fs).identity == again
    assert load(fs).count_boot().origin == bound.incarnation


def test_both_slots_damaged_is_no_identity():
    """The caller decides what that means."""
    fs = make(1)
    for slot in SLOT_NAMES:
        fs.disk.damage(f"/data/{slot}", b"garbage")
    file = IdentityFile(fs, "/data")
    assert not file.load()
    with pytest.raises(StorageFailed):
        file.count_boot()


def test_a_newer_major_format_is_refused():
    """Even if the other slot could be read: the newer version's promises are unknown."""
    from zlib import crc32

    fs = make(1)
    block = bytearray(fs.disk.file("/data/identity.a"))
    block[8] = 9
    block[-4:] = crc32(bytes(block[:-4])).to_bytes(4, "little")
    fs.disk.damage("/data/identity.a", block)
    with pytest.raises(UnsupportedFormat):
        load(fs)


def test_slots_are_read_from_the_disk_and_their_names_made_durable():
    """Synced and dropped from the cache before anything is believed; a new slot's name is synced like its bytes."""
    fs = blank()
    fs.make_dir("/data")
    file = load(fs)
    fs.disk.trace.clear()
    file.mint(Random(1))
    for slot, line in (("a", 0), ("b", 5)):
        path = f"/data/identity.{slot}"
        expected = ["listdir /data", f"create {path}", f"pwrite {path}", f"fdatasync {path}", "fsync_dir /data"]
        assert trace(fs)[line : line + 5] == expected
    fs.disk.trace.clear()
    load(fs)
    path = "/data/identity.a"
    assert trace(fs)[1:5] == [f"open {path}", f"fdatasync {path}", f"forget_cache {path}", f"pread {path}"]


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_that_a_life_may_have_promised_something_is_never_forgotten(slot):
    """Lives without promises in between, a recovery, the loss of a slot: whoever starts owes it still."""
    fs = make(1)
    assert not load(fs).bind(cluster_id=7, member_id=3).has_promised
    assert load(fs).bind(cluster_id=7, member_id=3, promises=True).has_promised
    fs.unlink(f"/data/{slot}")
    assert load(fs).identity.has_promised
    assert load(fs).count_boot().has_promised
    assert load(fs).bind(cluster_id=7, member_id=3).has_promised
    assert load(fs).rebind(cluster_id=8, incarnation=99).has_promised


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_a_rolled_back_directory_stays_so_until_a_recovery(slot):
    """Whatever is written of it later, and without either slot. A recovery makes another cluster of what is there."""
    fs = make(1)
    assert not load(fs).bind(cluster_id=7, member_id=3).is_rolled_back
    assert load(fs).bind(cluster_id=7, member_id=3, rolled_back=True).is_rolled_back
    fs.unlink(f"/data/{slot}")
    assert load(fs).identity.is_rolled_back
    assert load(fs).count_boot().is_rolled_back
    assert load(fs).bind(cluster_id=7, member_id=3, promises=True).is_rolled_back
    assert not load(fs).rebind(cluster_id=8, incarnation=99).is_rolled_back
    assert not load(fs).identity.is_rolled_back


def test_who_does_not_know_whether_it_has_promised_may_have():
    """A slot from before that was written down has zeros there."""
    fs = make(1)
    for name in SLOT_NAMES:
        block = bytearray(fs.disk.file(f"/data/{name}"))
        block[60:68] = bytes(8)
        block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
        fs.disk.damage(f"/data/{name}", block)
    assert load(fs).identity.has_promised
