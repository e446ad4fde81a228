"""Restoring: a new cluster that begins with the data of a saved snapshot.

Each machine restores its own member by itself, from a copy of the same file and with the same list of members; they
meet when they are started. Rules, and why:

1. *It is another cluster.* What the one before decided after the snapshot is gone here, so nobody may take the word of
   its members, or they ours. Its id follows from the file, the members and the rest of what was asked for: who was
   restored differently is in another cluster, and each side refuses the other.
2. *Revisions are not used again.* A watcher of the old cluster stands at revision 900; the snapshot ends at 800. Were
   801 the next one, its watch would go on at 901 over other changes than those that it missed, and a compare of
   mod_revision 850 could hold of another write. So revisions go on `BUMP_REVISION` later, and what is before counts as
   compacted: the watch ends and says so (`WatchCancelled.compact_revision`), and whoever watches reads afresh. (etcd:
   ``--bump-revision``, ``--mark-compacted``.)
3. *Sessions are dropped.* Of a write that was acknowledged after the snapshot the restored session would know nothing,
   and would execute its late copy. Of a session that is unknown nothing is executed: `SessionExpired`.
4. *Leases stay what they are on their keys:* the ids. There are no tables of them in this version.
5. *An incarnation is of one restore.* It follows from the cluster's id and the member's name, so that the others know
   it before they have met. A member whose disk is lost *later* must not be restored again: it would come back under the
   same incarnation, and would have forgotten what it acknowledged. It is replaced (`members.replace`). To restore the
   same file anew, for all members, give another ``token``.
6. *The directory appears in one step.* It is made beside its place, under another name, and renamed when everything in
   it is durable: an interrupted restore leaves nothing at the place, and the next one begins afresh.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from random import Random, SystemRandom

from pyraftkv import codec, errors
from pyraftkv._record import record
from pyraftkv.backup.files import SnapshotStatus, load, place_of
from pyraftkv.core import HardState, Save
from pyraftkv.core.types import SnapshotMeta
from pyraftkv.futures import fulfil
from pyraftkv.log import FileStorage
from pyraftkv.log.fs import FileSystem, OsFileSystem, parent
from pyraftkv.log.identity import SLOT_NAMES
from pyraftkv.log.inspect import is_in_use
from pyraftkv.log.mark import MARK_NAME
from pyraftkv.protocol import Genesis, MemberInfo
from pyraftkv.replica import Replica
from pyraftkv.sessions import Sessions
from pyraftkv.store import Store

BUMP_REVISION = 1_000_000_000
"""How far revisions jump: more than any cluster writes between a snapshot and its end."""

BUMP_REVISION_MAX = 1 << 62

RESTORING_SUFFIX = ".restoring"
"""What the directory is called while it is being made."""

DRAFT_NAMES = frozenset({"LOCK", "wal", "snap", MARK_NAME, *SLOT_NAMES})
"""What an interrupted restore may leave under that name: anything else is not ours to remove."""

RULES = 1
"""Which rules made the state: versions that would make another one of the same file must not meet."""

COMPACTION_BUDGET = 5000
"""Versions that compaction touches before others have their turn on the loop."""


@record
class Restored:
    """What was made."""

    data_dir: str
    cluster_id: int
    """The same on every machine that restored the same file in the same way."""
    member: MemberInfo
    """Whose directory it is."""
    members: list[MemberInfo]
    revision: int
    """Where history begins: everything before counts as compacted, unless nothing was bumped."""
    keys: int
    snapshot: SnapshotStatus
    """What it was made of."""


async def restore(
    path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    name: str,
    members: Mapping[str, str],
    bump_revision: int = BUMP_REVISION,
    token: str = "",
    random: Random | None = None,
    fs: FileSystem | None = None,
) -> Restored:
    """Make the directory of one member of a new cluster; see `pyraftkv.restore_snapshot`.

    Args:
        path: The saved snapshot.
        data_dir: Made; it may be there if it is empty.
        name: Whose directory it is; one of `members`.
        members: Names and addresses of all members of the new cluster.
        bump_revision: How many revisions are passed over. 0 keeps revisions and history as they are: for a copy that
            no client of the old cluster ever meets.
        token: Tells clusters apart that are restored from the same file for the same members.
        random: Mints the salts of the files.
        fs: Where the directory is made.

    Raises: `SnapshotCorruption` with the place of the damage, `StorageError`, `ConfigurationError`.
    """
    if name not in members:
        raise errors.ConfigurationError(f"{name!r} is not among the members {sorted(members)}")
    if not 0 <= bump_revision <= BUMP_REVISION_MAX:
        raise errors.ConfigurationError(f"revisions go on by 0 to {BUMP_REVISION_MAX}, not by {bump_revision}")
    if token.encode(errors="replace").decode() != token:
        raise errors.ConfigurationError(f"a token is text that can be sent, not {token!r}")
    target, _ = place_of(data_dir)
    _refuse_used(target)
    replica, status = await load(path)
    cluster_id, rows = cluster_of(status.sha256, members, bump_revision=bump_revision, token=token)
    replica.roster.restart(Genesis(cluster_id, rows))
    replica.sessions = Sessions()
    if bump_revision:
        await _bump(replica.store, bump_revision)
    member = next(row for row in rows if row.name == name)
    await _build(target, replica, member, random=random or SystemRandom(), fs=fs or OsFileSystem())
    store = replica.store
    return Restored(target, cluster_id, member, rows, store.published_revision, store.key_count, status)


def cluster_of(
    sha256: str, members: Mapping[str, str], *, bump_revision: int, token: str
) -> tuple[int, list[MemberInfo]]:
    """Return the new cluster's id and its members: a function of what was asked for, and of nothing else."""
    facts = codec.encode_table([RULES, sha256, sorted(map(list, members.items())), bump_revision, token])
    cluster_id = int.from_bytes(_digest(facts)[:7], "big") or 1
    rows = [
        MemberInfo(id_, name, members[name], _incarnation(cluster_id, name))
        for id_, name in enumerate(sorted(members), start=1)
    ]
    return cluster_id, rows


def _incarnation(cluster_id: int, name: str) -> int:
    return int.from_bytes(_digest(codec.encode_table([cluster_id, name])), "big") >> 1 | 1


def _digest(facts: bytes) -> bytes:
    return blake2b(facts, digest_size=8, person=b"pyraftkv-restore").digest()


async def _bump(store: Store, by: int) -> None:
    """Pass over revisions, and drop the history before."""
    store.bump_revision(by)
    while store.distributed_revision < store.published_revision:
        store.advance()
        await asyncio.sleep(0)
    work = store.compaction()
    assert work is not None, "nothing is pinned, and there is history"
    while True:
        if work.step(COMPACTION_BUDGET) is not None:
            return
        await asyncio.sleep(0)


def _refuse_used(target: str) -> None:
    """Raise `StorageError` if something stands where the directory is to be."""
    if _names_in(target):
        raise errors.StorageError(f"{target} is not empty: a restore makes a new directory, and changes none")


def _names_in(directory: str) -> set[str]:
    """Return the names in a directory; none if it is not there. Raises `StorageError`."""
    try:
        return {path.name for path in Path(directory).iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise errors.StorageError(f"{directory}: {error}") from error


async def _build(target: str, replica: Replica, member: MemberInfo, *, random: Random, fs: FileSystem) -> None:
    """Make the directory under another name, and rename it when everything in it is durable."""
    draft = target + RESTORING_SUFFIX
    if is_in_use(OsFileSystem(read_only=True), draft):
        raise errors.DataDirLocked(f"{draft}: another process is restoring to {target}")
    strange = _names_in(draft) - DRAFT_NAMES
    if strange:
        raise errors.StorageError(f"{draft} holds {sorted(strange)}, which no restore has left there: move it away")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        await _fill(FileStorage(draft, random=random, fs=fs), replica, member)
        fs.rename(draft, target)
        fs.fsync_dir(parent(target))
    except OSError as error:
        raise errors.StorageError(f"{target} cannot be made: {error}") from error


async def _fill(storage: FileStorage, replica: Replica, member: MemberInfo) -> None:
    """Write the state as a snapshot that the log begins with, and bind the identity."""
    saved: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def failed(error: BaseException) -> None:
        if not saved.done():
            saved.set_exception(error)
            saved.exception()  # whoever waits for it gets it; perhaps nobody does

    def filled(is_full: bool) -> None:  # noqa: FBT001  (the storage's listener)
        if is_full:
            failed(errors.StorageFailed("the disk is full: nothing was restored"))

    cluster_id = replica.roster.cluster_id
    await storage.start(failed=failed, full=filled)
    try:
        await storage.identify(cluster_id=cluster_id, member_id=member.id)
        meta = SnapshotMeta(replica.applied_index, replica.applied_term, replica.membership)
        snapshot = replica.snapshot()
        sink = storage.create_snapshot(meta, received=True)
        try:
            for chunk in snapshot.chunks():
                await sink.write(chunk)
            await sink.commit()
        finally:
            await sink.abort()
            snapshot.close()
        state = HardState(term=meta.term, vote=0, commit=meta.index)
        storage.save(Save(1, state, [], meta), partial(fulfil, saved))
        await saved
        await storage.rebind(cluster_id=cluster_id, incarnation=member.incarnation)
    finally:
        await storage.close()
