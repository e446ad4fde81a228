"""`MachineFace`: a machine of your own, called through a node or a client."""

from __future__ import annotations

from typing import Any, Protocol

from pyraftkv import codec, errors
from pyraftkv.given import whole
from pyraftkv.kv import Consistency
from pyraftkv.machines import encode_call
from pyraftkv.statemachine import MachineQuery, Operate, Operated


class Operating(Protocol):
    """What a face needs of its node or client."""

    async def operate(self, command: Operate, timeout: float | None) -> Operated: ...

    async def ask_machine(self, query: MachineQuery, consistency: Consistency, timeout: float | None) -> Operated: ...


class MachineFace:
    """One machine of the cluster; made by `Engine.machine`."""

    def __init__(self, engine: Operating, name: str) -> None:
        self._engine = engine
        self.name = name
        self._version = 0

    def __repr__(self) -> str:
        return f"<MachineFace {self.name!r} of {self._engine!r}>"

    async def version(self, *, timeout: float | None = None) -> int:
        """Return the newest version of operations that all members know, and use it from now on.

        Raises: `InvalidRequest` if there is no such machine; `Unavailable` if not all members have it.
        """
        found = await self._engine.ask_machine(MachineQuery(self.name, b""), "local", timeout)
        version: int = codec.decode_plain(found.result)
        self._version = version
        return version

    async def call(self, operation: str, *args: Any, version: int = 0, timeout: float | None = None) -> Any:
        """Apply an operation, exactly once, and return its result.

        Args:
            operation: Its name.
            args: Plain values.
            version: At which version; by default the newest that all members knew when they were asked last (see
                `version`), which is at the first call.
            timeout: In seconds.

        Raises: `OperationRefused` with what it raised; `NotApplied`, `MaybeApplied`.
        """
        payload = encode_call(operation, args)
        return codec.decode_plain((await self.apply(payload, version=version, timeout=timeout)).result)

    async def apply(self, payload: bytes, *, version: int = 0, timeout: float | None = None) -> Operated:
        """As `call`, for a machine that takes bytes; return its result with the store's revision at that time."""
        whole(version, "version", least=0)
        known = self._version or await self.version(timeout=timeout)
        if version > known and version > await self.version(timeout=timeout):
            raise errors.InvalidRequest(f"{self.name!r} is at version {self._version} with some of the members")
        version = version or known
        return await self._engine.operate(Operate(self.name, version, payload), timeout)

    async def query(
        self, query: str, *args: Any, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Any:
        """Ask a question, and return the answer. Raises `OperationRefused`, `Unavailable`."""
        answer = await self.ask(encode_call(query, args), consistency=consistency, timeout=timeout)
        return codec.decode_plain(answer.result)

    async def ask(
        self, payload: bytes, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Operated:
        """As `query`, for a machine that takes bytes."""
        return await self._engine.ask_machine(MachineQuery(self.name, payload), consistency, timeout)
