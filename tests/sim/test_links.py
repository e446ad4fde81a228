"""Links: one direction at a time."""

from __future__ import annotations

from typing import Any

import pytest

from pyraftkv.sim.links import LOOPBACK, LinkProfile, Links


def test_a_cut_is_of_one_direction() -> None:
    """It is told once, and so is its end."""
    links = Links()
    told: list[Any] = []
    links.on_cut.append(lambda link: told.append(("cut", link.source, link.target)))
    links.on_heal.append(lambda link: told.append(("heal", link.source, link.target)))
    for _ in range(2):
        links.cut("a", "b")
    assert (links.reaches("a", "b"), links.reaches("b", "a")) == (False, True)
    assert repr(links) == "<Links [<Link a -> b, cut>]>"
    links.cut("b", "c")
    links.heal("c", "b")
    links.heal_all()
    links.heal_all()
    assert links.reaches("a", "b")
    assert told == [("cut", "a", "b"), ("cut", "b", "c"), ("heal", "a", "b"), ("heal", "b", "c")]


def test_a_link_has_the_default_profile_or_its_own() -> None:
    """A new default reaches every link without one, made or not; a host's way to itself stays."""
    links = Links()
    slow, lossy = LinkProfile(latency_seconds=(1.0, 2.0)), LinkProfile(drop_rate=0.5)
    links.link("a", "b")
    links.set_profile("b", "a", lossy)
    links.link("a", "a")
    links.set_default(slow)
    assert links.default is slow
    assert (links.profile("a", "b"), links.profile("b", "a"), links.profile("a", "c")) == (slow, lossy, slow)
    assert links.profile("a", "a") is LOOPBACK
    links.set_profile("b", "a", None)
    assert links.profile("b", "a") is slow


def test_a_host_reaches_itself() -> None:
    """Always, and as it is."""
    links = Links()
    with pytest.raises(AssertionError):
        links.cut("a", "a")
    with pytest.raises(AssertionError):
        links.set_profile("a", "a", LinkProfile())
