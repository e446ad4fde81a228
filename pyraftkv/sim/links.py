"""`Links`: the state of the network between hosts, one direction at a time. The one place of network faults.

Streams (`pyraftkv.sim.streams`) and whole messages obey the same links. What a fault does to a stream is what it does
to TCP: loss is a delay, a cut holds bytes back until it heals or the connection is given up, a duplicate or a
reordered packet is not seen at all, and corruption is what came through the checksum.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from pyraftkv._record import record


@record
class LinkProfile:
    """How a link behaves while it is not cut. Rates are probabilities between 0 and 1."""

    latency_seconds: tuple[float, float] = (0.0001, 0.0006)
    """The bounds of a packet's travel, in seconds."""
    bandwidth_bytes: float = 0.0
    """Bytes per second, shared by every stream of the link; 0 sets no bound."""
    drop_rate: float = 0.0
    """Messages that are lost; pieces of a stream that must be sent again."""
    duplicate_rate: float = 0.0
    """Messages that arrive twice."""
    reorder_rate: float = 0.0
    """Messages that arrive late, behind those sent after them."""
    reorder_seconds: float = 0.05
    """How late at most, in seconds."""
    corrupt_rate: float = 0.0
    """Pieces of a stream that arrive with a bit flipped."""


LOOPBACK = LinkProfile(latency_seconds=(0.00001, 0.00005))
"""A host's link to itself."""


class Link:
    """One direction between two hosts, as it is now."""

    __slots__ = ("busy_until", "is_cut", "profile", "source", "target")

    def __init__(self, source: str, target: str, profile: LinkProfile) -> None:
        self.source = source
        self.target = target
        self.profile = profile
        self.is_cut = False
        self.busy_until = 0.0
        """When the last byte handed over so far will have left, in global seconds; only with a bandwidth."""

    def __repr__(self) -> str:
        return f"<Link {self.source} -> {self.target}{', cut' if self.is_cut else ''}>"

    def latency(self, random: Random) -> float:
        """Draw how long one packet travels, in seconds."""
        low, high = self.profile.latency_seconds
        return low + (high - low) * random.random()


class Links:
    """Every link, made when it is first asked for.

    Invariant: a link without a profile of its own has the default one.
    """

    def __init__(self) -> None:
        self._links: dict[tuple[str, str], Link] = {}
        self._own: set[tuple[str, str]] = set()
        self._default = LinkProfile()
        self.on_cut: list[Callable[[Link], object]] = []
        """Called after a link was cut."""
        self.on_heal: list[Callable[[Link], object]] = []
        """Called after a link was healed."""
        self.on_reset: list[Callable[[str, str], object]] = []
        """Called to reset every stream between two hosts."""

    def __repr__(self) -> str:
        return f"<Links {[link for link in self._links.values() if link.is_cut]}>"

    def link(self, source: str, target: str) -> Link:
        """The link in that direction. O(1)."""
        link = self._links.get((source, target))
        if link is None:
            profile = LOOPBACK if source == target else self._default
            link = self._links[source, target] = Link(source, target, profile)
        return link

    def reaches(self, source: str, target: str) -> bool:
        """Whether packets pass in that direction."""
        return not self.link(source, target).is_cut

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass in that direction. Idempotent."""
        assert source != target, "a host reaches itself"
        link = self.link(source, target)
        if not link.is_cut:
            link.is_cut = True
            for callback in self.on_cut:
                callback(link)

    def heal(self, source: str, target: str) -> None:
        """Undo `cut`. Idempotent."""
        link = self.link(source, target)
        if link.is_cut:
            link.is_cut = False
            for callback in self.on_heal:
                callback(link)

    def heal_all(self) -> None:
        """Undo every `cut`; profiles stay."""
        for link in list(self._links.values()):
            self.heal(link.source, link.target)

    def reset(self, one: str, other: str) -> None:
        """Break every stream between two hosts, at both ends at once."""
        for callback in self.on_reset:
            callback(one, other)

    def profile(self, source: str, target: str) -> LinkProfile:
        """How the link in that direction behaves. O(1)."""
        return self.link(source, target).profile

    @property
    def default(self) -> LinkProfile:
        """How links behave that have no profile of their own."""
        return self._default

    def set_profile(self, source: str, target: str, profile: LinkProfile | None) -> None:
        """Give the link in that direction a profile of its own; None takes it away."""
        assert source != target, "a host's way to itself is as it is"
        link = self.link(source, target)
        if profile is None:
            self._own.discard((source, target))
        else:
            self._own.add((source, target))
        link.profile = profile or self._default

    def set_default(self, profile: LinkProfile) -> None:
        """Set the profile of every link that has none of its own."""
        self._default = profile
        for key, link in self._links.items():
            if key not in self._own and link.source != link.target:
                link.profile = profile
