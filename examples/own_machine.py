"""A state machine of your own: seats that are never given away twice."""

import asyncio

import pyraftkv
from pyraftkv.machines import Machine
from pyraftkv.statemachine import operation, query


class Seats(Machine):
    def __init__(self) -> None:
        self.taken: dict[str, str] = {}

    @operation
    def reserve(self, seat: str, guest: str) -> None:
        if seat in self.taken:
            raise ValueError(f"{seat} is {self.taken[seat]}'s")
        self.taken[seat] = guest

    @query
    def guest(self, seat: str) -> str | None:
        return self.taken.get(seat)

    def rows(self) -> list[tuple[str, str]]:
        return list(self.taken.items())

    def load(self, rows: list[tuple[str, str]]) -> None:
        self.taken.update(rows)


async def main() -> None:
    async with pyraftkv.Cluster.in_memory(3, machines={"seats": Seats}) as cluster:
        seats = cluster.client().machine("seats")
        await seats.call("reserve", "7A", "Ada")
        await cluster.kill(cluster.leader)
        try:
            await seats.call("reserve", "7A", "Bob")
        except pyraftkv.errors.OperationRefused as error:
            print(error)
        print(await seats.query("guest", "7A"))


asyncio.run(main())
