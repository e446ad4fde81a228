"""Crash states by the hundred thousand: whatever a power failure leaves, the next start succeeds and is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.log.census import take
from tests.log.model import Promise, State
from tests.log.scenarios import SCENARIOS
from tests.log.states import Moment, Recorder

ROOT = Path(__file__).parents[2]

SHARE_STATES = 1_000
"""How many crash states a run of the tests goes through, for each of a scenario's shares."""


def test_there_are_enough():
    """200,000 states, and some of every scenario."""
    shares = [scenario.share for scenario in SCENARIOS.values()]
    assert SHARE_STATES * sum(shares) >= 200_000
    assert min(shares) > 0


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"purge"}))
def test_some_crash_states_are_recovered(name):
    """A few hundred, in this process: what `tests.log.census` is about, in short."""
    assert take(name, states=200, seed=3, cuts_starts=False)["states"] >= 200


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_crash_state_is_recovered(name, soak):
    """Before every operation of the scenario, and before those of the start after it."""
    states = SHARE_STATES * SCENARIOS[name].share * (10 if soak else 1)
    command = [sys.executable, "-m", "tests.log.census", name, f"--states={states}", f"--seed={2 if soak else 1}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])[name]
    assert counts["states"] >= states
    assert counts["moments"] >= 40
    assert counts["torn"] >= states // 400, "no tails are torn: nothing is proved"
    assert counts["again"] >= 20
    assert counts["deep"] >= states // 40


PROMISE = Promise((State(),), 0, 0, 0, 0, ((0, 0),))


def moment_of(*steps: str) -> Moment:
    """A small disk with a durable file ``/d/old`` of ten bytes, after these changes that nobody synced."""
    disk = Recorder(Random(1), lambda *_: None)
    fs = disk.mount()
    fs.make_dir("/d")
    fs.fsync_dir("/")
    fd = fs.open("/d/old", create=True)
    fs.pwrite(fd, b"o" * 10, 0)
    fs.fdatasync(fd)
    fs.fsync_dir("/d")
    for step in steps:
        kind, *arguments = step.split()
        if kind == "write":
            fs.pwrite(fd, arguments[1].encode(), int(arguments[0]))
        elif kind == "cut":
            disk.inode("/d/old").truncate(int(arguments[0]))
        elif kind == "create":
            fs.open(arguments[0], create=True)
        else:
            getattr(fs, kind)(*arguments)
    return Moment(disk, "the end", PROMISE)


def found(moment: Moment, most: int = 10_000) -> set[tuple[tuple[str, bytes], ...]]:
    """What is on its images, file by file."""
    return {tuple(image.mount().contents()["/d"].items()) for image in moment.images(Random(1), most=most)}


def test_without_pending_changes_there_is_one_image():
    """What was synced is there."""
    assert found(moment_of()) == {(("old", b"o" * 10),)}


def test_a_write_may_be_cut_at_every_byte_zeroed_and_garbled():
    """And its length may be durable before its bytes."""
    bytes_found = {content for ((_, content),) in found(moment_of("write 10 new"))}
    assert {b"o" * 10 + end for end in (b"", b"n", b"ne", b"new", b"\0\0\0")} < bytes_found
    assert any(len(content) == 13 and content[10:] not in (b"new", b"\0\0\0") for content in bytes_found)
    assert len(bytes_found) == 6


def test_sectors_have_fates_of_their_own():
    """The later one may be there without the earlier one."""
    text = "x" * 502 + "y" * 20
    contents = {content for ((_, content),) in found(moment_of(f"write 10 {text}"))}
    assert b"o" * 10 + bytes(502) + b"y" * 20 in contents
    assert b"o" * 10 + b"x" * 502 + bytes(20) in contents


def test_a_truncation_happened_or_not():
    """Both are met, before and after a write."""
    contents = {content for ((_, content),) in found(moment_of("cut 4", "write 4 n"))}
    assert {b"o" * 10, b"oooo", b"oooon", b"oooonooooo"} <= contents


def test_names_change_in_any_order_or_not_at_all():
    """A rename may be durable before the creation that it moved, and an unlink without either."""
    names = {tuple(name for name, _ in each) for each in found(moment_of("create /d/t", "rename /d/t /d/new"))}
    assert {tuple(sorted(each)) for each in names} == {("old",), ("old", "t"), ("new", "old"), ("new", "old", "t")}
    assert () in found(moment_of("unlink /d/old"))


def test_a_directory_that_nobody_synced_may_be_missing():
    """With all that is in it."""
    disk = Recorder(Random(1), lambda *_: None)
    fs = disk.mount()
    fs.make_dir("/d")
    fs.open("/d/f", create=True)
    moment = Moment(disk, "the end", PROMISE)
    assert {"/d" in image.names for image in moment.images(Random(1), most=100)} == {True, False}


def test_no_more_than_asked_for():
    """Where there are too many, the extremes are among those."""
    moment = moment_of("write 10 " + "z" * 3000, "create /d/a", "create /d/b")
    some = found(moment, most=50)
    assert (("old", b"o" * 10),) in some
    assert (("old", b"o" * 10 + b"z" * 3000), ("a", b""), ("b", b"")) in some
    assert len(list(moment.images(Random(1), most=50))) == 50


def test_a_killed_process_leaves_all_of_it_pending():
    """Programs see everything, and a power failure may still take any of it."""
    moment = moment_of("write 10 new", "create /d/t", "unlink /d/old")
    disk = Recorder(Random(1), lambda *_: None)
    moment.put_as_killed(disk)
    assert list(disk.directories["/d"].names) == ["t"]
    again = Moment(disk, "the end", PROMISE)
    assert found(again) == found(moment)
