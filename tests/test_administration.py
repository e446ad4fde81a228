"""Settings and alarms through every face: leader, follower, client, and a namespace of one."""

from __future__ import annotations

import asyncio

from pyraftkv import errors
from pyraftkv.settings import Alarm, AlarmKind, ChangeAlarm, CompactionMode
from tests.node.support import asynchronous, cluster_of, refused


@asynchronous
async def test_settings_are_the_same_wherever_they_are_asked_for_or_changed() -> None:
    """Linearizable: what was changed through one face is there through the next."""
    async with cluster_of(3) as cluster:
        client = cluster.client()
        faces = [cluster.leader, *cluster.followers, client, client.namespace("app/")]
        for number, kv in enumerate(faces, start=1):
            changed = await kv.settings.change(quota_bytes=number * 1000, compaction_mode=CompactionMode.REVISION)
            assert (changed.version, changed.quota_bytes) == (number, number * 1000)
            assert [await each.settings.get() for each in faces] == [changed] * len(faces)
        error = await refused(client.settings.change(quota_bytes=5, if_version=1), errors.SettingsChanged)
        assert error.version == len(faces)
        await refused(client.settings.change(compaction_seconds=0), errors.InvalidRequest)


@asynchronous
async def test_two_that_change_what_they_read_do_not_overwrite_each_other() -> None:
    """With `if_version` one of them is told, and reads again."""
    async with cluster_of(1) as cluster:
        db = cluster.client()

        async def one_more() -> None:
            while True:
                settings = await db.settings.get()
                try:
                    await db.settings.change(
                        compaction_revisions=settings.compaction_revisions + 1, if_version=settings.version
                    )
                except errors.SettingsChanged:
                    continue
                return

        before = (await db.settings.get()).compaction_revisions
        await asyncio.gather(*[one_more() for _ in range(5)])
        assert (await db.settings.get()).compaction_revisions == before + 5


@asynchronous
async def test_alarms_are_listed_and_disarmed_through_every_face() -> None:
    """Who disarms is told which there were."""
    async with cluster_of(2) as cluster:
        client = cluster.client()
        alarm = Alarm(AlarmKind.CORRUPT, 2)
        for kv in (cluster.leader, cluster.followers[0], client, client.namespace("app/")):
            await cluster.leader._running().decide(ChangeAlarm(alarm.kind, alarm.member, is_raised=True))
            assert await kv.alarms.list() == [alarm]
            await refused(kv.put("k", "v"), errors.Corrupt)
            assert await kv.alarms.disarm(AlarmKind.NOSPACE) == []
            assert await kv.alarms.disarm(AlarmKind.CORRUPT, 2) == [alarm]
            assert await kv.alarms.list() == []
            await kv.put("k", "v")
