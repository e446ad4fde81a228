"""A shared configuration: typed, validated, followed, and put back."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field

import pytest

from pyraftkv import KV, Cluster, errors
from pyraftkv.recipes import ConfigCenter
from pyraftkv.recipes.config import FIELDS_MAX
from tests.recipes.support import TTL, cancel_everywhere, nothing_is_left, refused, soon, virtually


@dataclass(frozen=True)
class Shop:
    """What the tests configure."""

    low: int = 1
    high: int = 10
    names: list[str] = field(default_factory=list)


def ordered(shop: Shop) -> None:
    """Refuse what is the wrong way round."""
    if shop.low > shop.high:
        raise ValueError("low is over high")


def center(kv: KV) -> ConfigCenter[Shop]:
    """Return the configuration of the tests."""
    return ConfigCenter(kv, "shop", Shop, validate=ordered)


def test_several_fields_change_at_once_or_not_at_all() -> None:
    """What is not valid as a whole is refused, as is what there is no field for."""

    async def scenario(cluster: Cluster) -> None:
        config = center(cluster.client())
        assert await config.get() == Shop()
        await config.change({"low": 20}, high=30)
        assert await config.get() == Shop(20, 30)
        for wrong in ({"low": 31}, {"high": 19, "names": ["x"]}, {"high": "30"}, {"middle": 25}):
            await refused(config.change(wrong), errors.InvalidRequest)
        assert await config.get() == Shop(20, 30)

    virtually(scenario, members=3)


def test_two_changes_that_fit_alone_and_not_together() -> None:
    """The second one is refused: it was validated with the first."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        results = await asyncio.gather(center(kv).change(low=9), center(kv).change(high=2), return_exceptions=True)
        assert sum(isinstance(each, errors.InvalidRequest) for each in results) == 1
        ordered(await center(kv).get())

    virtually(scenario, members=3)


def test_changes_are_followed() -> None:
    """Each with what was before; nobody sees a half of one, and a callback that fails keeps nobody from it."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        seen: list[tuple[Shop, Shop]] = []
        trouble: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: trouble.append(told["exception"]))
        async with center(kv) as config:
            config.on_change(lambda before, after: 1 // 0)
            config.on_change(lambda before, after: seen.append((before, after)))
            await center(kv).change(low=20, high=30)
            revision = await center(kv).change(names=["a"])
            assert await config.at_least(revision) == Shop(20, 30, ["a"])
            assert config.revision >= revision
        assert seen[0][0] == Shop()
        assert seen[-1][1] == Shop(20, 30, ["a"])
        assert len(trouble) == len(seen)
        await center(kv).change(low=1)
        assert config.value == Shop(20, 30, ["a"])
        with pytest.raises(errors.InvalidRequest):
            async with config:
                pytest.fail("it was entered before")

    virtually(scenario, members=3)


def test_who_is_cancelled_on_the_way_out_is_cancelled() -> None:
    """The block ends, and the cancellation goes on to whoever asked for it."""

    async def scenario(cluster: Cluster) -> None:
        kv, entered, ends = cluster.leader, asyncio.Event(), asyncio.Event()

        async def follow() -> None:
            async with center(kv):
                entered.set()
                await ends.wait()

        following = asyncio.create_task(follow())
        await entered.wait()
        ends.set()
        await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait([following])
        assert following.cancelled()

    virtually(scenario)


@pytest.mark.parametrize("nonsense", ["nonsense", '"text"', "100", '3, "high": 5', "NaN", "1e999", '"\\ud800"'])
def test_nonsense_is_given_to_nobody(nonsense: str) -> None:
    """The last good one stays, until it is rolled back."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with center(kv) as config:
            good = await config.change(low=2)
            await config.at_least(good)
            await kv.put("shop//fields/low", nonsense)
            await soon(lambda: config.error)
            assert config.value == Shop(2)
            await refused(config.get(), errors.InvalidValue)
            await refused(config.change(high=50), errors.InvalidValue)
            await config.at_least(await config.rollback(good))
            assert config.error is None
            assert config.value == Shop(2)
            await kv.put(b"shop//fields/\xff", "another program's")
            assert (await config.at_least(await config.change(low=3))) == Shop(3)

    virtually(scenario)


def test_history_and_rollback() -> None:
    """Every change is told; going back is one, too."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        config = center(kv)
        first = await config.change(low=2, note="a little more")
        second = await config.change(low=3, high=40)
        assert await config.get(revision=first) == Shop(2)
        third = await config.rollback(first)
        assert await config.get() == Shop(2)
        assert [(each.revision, each.fields, each.note) async for each in config.history()] == [
            (first, ("low",), "a little more"),
            (second, ("low", "high"), ""),
            (third, ("low", "high"), f"rolled back to {first}"),
        ]
        await refused(config.change(low=4, note="\ud800"), errors.InvalidRequest)
        await kv.put("shop//changes", "nonsense")
        assert [each.fields async for each in config.history()][-1] == ()

    virtually(scenario)


def test_a_program_of_an_older_release_leaves_new_fields_alone() -> None:
    """And a new default is the value of what nobody has set."""

    @dataclass(frozen=True)
    class Older:
        low: int = 1

    @dataclass(frozen=True)
    class Newer(Shop):
        high: int = 99

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        await center(kv).change(names=["a"])
        await ConfigCenter(kv, "shop", Older).change(low=5)
        assert await center(kv).get() == Shop(5, 10, ["a"])
        assert await ConfigCenter(kv, "shop", Newer).get() == Newer(5, 99, ["a"])

    virtually(scenario)


def test_what_cannot_be_a_configuration_is_refused() -> None:
    """Without defaults, or with too many fields."""

    @dataclass
    class Needy:
        x: int

    many = dataclasses.make_dataclass("Many", [(f"f{n}", int, 0) for n in range(FIELDS_MAX + 1)])

    async def scenario(cluster: Cluster) -> None:
        for model in (Needy, many, int):
            with pytest.raises(errors.InvalidRequest):
                ConfigCenter(cluster.leader, "x", model)

    virtually(scenario)


def test_a_configuration_that_nobody_has_read_yet_has_no_value() -> None:
    """Its defaults would look like what everybody agreed on. `get` reads it at any time."""

    async def scenario(cluster: Cluster) -> None:
        config = ConfigCenter(cluster.leader, "shop", Shop)
        revision = await config.change(low=5, high=6)
        with pytest.raises(errors.InvalidRequest, match="async with"):
            _ = config.value
        await refused(config.at_least(revision), errors.InvalidRequest)
        assert (await config.get()).low == 5
        async with config:
            assert config.value.low == 5
        assert config.value.low == 5

    virtually(scenario)


def test_a_rollback_is_to_a_revision() -> None:
    """0 is no revision, though it reads what there is: that would be a change that changes nothing."""

    async def scenario(cluster: Cluster) -> None:
        config = ConfigCenter(cluster.leader, "shop", Shop)
        for revision in (0, -1, "1", None):
            await refused(config.rollback(revision), errors.InvalidRequest)  # type: ignore[arg-type]
        assert [change async for change in config.history()] == []

    virtually(scenario)


def test_a_callback_is_a_plain_function() -> None:
    """Nobody would await what a coroutine function returns: it would never run."""

    async def coroutine(before: Shop, after: Shop) -> None:
        raise AssertionError("never run")

    async def scenario(cluster: Cluster) -> None:
        for callback in (coroutine, None):
            with pytest.raises(errors.InvalidRequest, match="plain function"):
                ConfigCenter(cluster.leader, "shop", Shop).on_change(callback)  # type: ignore[arg-type]

    virtually(scenario)


async def follow_and_change(kv: KV) -> None:
    """Change it, and see that."""
    async with ConfigCenter(kv, "x", Shop) as config:
        await config.at_least(await config.change(low=5, high=6))


def test_cancelled_anywhere_it_changed_as_a_whole_or_not_at_all() -> None:
    """And nothing follows it any more."""

    async def check(kv: KV, ended: bool) -> None:
        await nothing_is_left(kv, "x")
        assert await ConfigCenter(kv, "x", Shop).get() in ((Shop(5, 6),) if ended else (Shop(), Shop(5, 6)))
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "pyraftkv-config"] == []
        await asyncio.sleep(TTL)

    assert cancel_everywhere(follow_and_change, check) > 3
