"""`Machines`: a target of faults that keeps account of what is done to it, and holds its caller to the protocol."""

from __future__ import annotations

from collections.abc import Sequence

from pyraftkv.sim.faults import Ability, DiskFault, LinkFault, Order

EVERYTHING = ~Ability(0)


class Machines:
    """Members and clients that do nothing.

    Invariant: nothing is paused, cut or frozen that is so already, and nothing resumed, healed or thawed that is not.
    """

    def __init__(
        self,
        members: int = 3,
        *,
        clients: int = 1,
        leading: str | None = "n1",
        abilities: Ability = EVERYTHING,
    ) -> None:
        self.members: Sequence[str] = [f"n{number}" for number in range(1, members + 1)]
        self.clients: Sequence[str] = [f"c{number}" for number in range(1, clients + 1)]
        self.abilities = abilities
        self.leading = leading
        self.calls: list[tuple[object, ...]] = []
        self.down: set[str] = set()
        self.paused: set[str] = set()
        self.frozen: set[str] = set()
        self.cuts: set[tuple[str, str]] = set()
        self.links: dict[tuple[str, str], LinkFault] = {}
        self.disks: dict[str, DiskFault] = {}
        self.rates: dict[str, float] = {}
        self.lost: set[str] = set()

    def __repr__(self) -> str:
        return f"<Machines {self.members}>"

    @property
    def is_well(self) -> bool:
        """Whether nothing temporary is wrong."""
        return not (self.down or self.paused or self.frozen or self.cuts or self.links or self.disks or self.rates)

    def sees(self, a: str, b: str) -> bool:
        return not {(a, b), (b, a)} & self.cuts

    def leader(self) -> str | None:
        return self.leading

    def kill(self, host: str) -> None:
        self._note("kill", host)
        self.down.add(host)

    def shut_down(self, host: str) -> None:
        self._note("shut_down", host)
        self.down.add(host)

    def start(self, host: str) -> None:
        self._note("start", host)
        self.down.discard(host)

    def pause(self, host: str) -> None:
        self._note("pause", host)
        assert host not in self.paused
        self.paused.add(host)

    def resume(self, host: str) -> None:
        self._note("resume", host)
        self.paused.remove(host)

    def power_loss(self, host: str) -> None:
        self._note("power_loss", host)
        self.down.add(host)

    def power_loss_at(self, host: str, operation: int) -> None:
        assert operation >= 1
        self._note("power_loss_at", host, operation)

    def cut(self, source: str, target: str) -> None:
        assert source != target
        assert (source, target) not in self.cuts
        self._note("cut", source, target)
        self.cuts.add((source, target))

    def heal(self, source: str, target: str) -> None:
        self._note("heal", source, target)
        self.cuts.remove((source, target))

    def reset(self, a: str, b: str) -> None:
        assert a != b
        self._note("reset", a, b)

    def set_link(self, source: str, target: str, fault: LinkFault) -> None:
        self._note("set_link", source, target, fault)
        self._set(self.links, (source, target), fault, LinkFault())

    def set_disk(self, host: str, fault: DiskFault) -> None:
        self._note("set_disk", host, fault)
        self._set(self.disks, host, fault, DiskFault())

    def rot(self, host: str, seed: int) -> None:
        self._note("rot", host, seed)
        self.lost.add(host)

    def wipe(self, host: str) -> None:
        self._note("wipe", host)
        self.lost.add(host)

    def jump_clock(self, host: str, seconds: float) -> None:
        assert seconds > 0
        self._note("jump_clock", host, seconds)

    def set_clock_rate(self, host: str, rate: float) -> None:
        self._note("set_clock_rate", host, rate)
        self._set(self.rates, host, rate, 1.0)

    def freeze(self, host: str) -> None:
        self._note("freeze", host)
        assert host not in self.frozen
        self.frozen.add(host)

    def thaw(self, host: str) -> None:
        self._note("thaw", host)
        self.frozen.remove(host)

    def jump_wall_clock(self, host: str, seconds: float) -> None:
        self._note("jump_wall_clock", host, seconds)

    def transfer(self, member: str) -> None:
        self._note("transfer", member)

    def compact(self) -> None:
        self._note("compact")

    def burst(self, size_bytes: int) -> None:
        assert size_bytes > 0
        self._note("burst", size_bytes)

    def operate(self, order: Order) -> None:
        self._note("operate", order)

    def _note(self, what: str, *details: object) -> None:
        self.calls.append((what, *details))

    @staticmethod
    def _set(table, key, value, usual) -> None:
        if value == usual:
            del table[key]
        else:
            table[key] = value
