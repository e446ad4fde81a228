"""`ConfigCenter`: a configuration that all programs share, typed by a dataclass.

Each field is a key with JSON, so that other programs can read and set one. What belongs together changes together: a
change of several fields is one transaction, that compares all it was reckoned from, and is validated as a whole before
it is written. Beside the fields is a key that each change writes, and whose versions are the configuration's history.

1. Two change two different fields, and each result is valid, but not both together. Both transactions compare all
   fields: the second one begins again, on what the first one made, and is refused.
2. Somebody puts nonsense with another program. Nobody here is given it: `value` stays what it was last, and `error`
   says why. Nobody here can change another field before it is mended, or rolled back.
3. A release adds a field, with a default. Programs of the older release leave its key alone, whatever they change.
4. A field's key is missing: it has its default, so a configuration that nobody has ever changed is all defaults.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from inspect import iscoroutinefunction
from typing import Any, Generic, Self, TypeVar

from pyraftkv._record import record
from pyraftkv.errors import InvalidRequest, InvalidValue
from pyraftkv.given import whole
from pyraftkv.keys import to_bytes
from pyraftkv.kv import KV, Stm, View
from pyraftkv.recipes.names import inside
from pyraftkv.store.values import EventType, KeyValue
from pyraftkv.typed import Typed

M = TypeVar("M")

CALLBACKS_MAX = 1000
FIELDS_MAX = 100
"""Fields of a configuration: one transaction compares and writes all of them."""


@record
class ConfigChange:
    """One change of a configuration."""

    revision: int
    fields: tuple[str, ...]
    """What was set to something else."""
    note: str


class ConfigCenter(Generic[M]):
    """A configuration: ``async with ConfigCenter(kv, "shop", Settings) as config: config.value.limit``.

    Args:
        kv: The store.
        name: Who gives the same name means the same configuration.
        model: A dataclass whose fields all have defaults; see `Typed` for what may stand in one.
        validate: Is given a configuration before it is written, and after it was read; raises `ValueError` for one that
            must not be.
    """

    def __init__(self, kv: KV, name: str, model: type[M], *, validate: Callable[[M], object] | None = None) -> None:
        self._kv = kv
        self.name = name
        self._row, self._log = inside(name, "fields/"), inside(name, "changes").encode()
        self._typed = Typed(kv, model)
        self._validate = validate
        try:
            self._default = self._value = model()
        except TypeError:
            raise InvalidRequest(f"{model.__name__}: a configuration's fields all have defaults") from None
        self._fields = tuple(field.name for field in dataclasses.fields(model) if field.init)  # type: ignore[arg-type]
        if len(self._fields) > FIELDS_MAX:
            raise InvalidRequest(f"{model.__name__} has {len(self._fields)} fields, over {FIELDS_MAX}")
        self._callbacks: list[Callable[[M, M], object]] = []
        self._view: View | None = None
        self._following: asyncio.Task[None] | None = None
        self.error: InvalidValue | None = None
        """Why what is stored is not given out, if it is not."""
        self.revision = 0
        """The revision of which `value` is."""

    def __repr__(self) -> str:
        return f"<ConfigCenter {self.name!r} at {self.revision}: {self._value!r}>"

    # --- Reading ---------------------------------------------------------------------------------------------------

    @property
    def value(self) -> M:
        """The configuration, kept current while the block runs; the last good one, if what is stored is not.

        Raises `InvalidRequest` before the block, where nothing was read yet: `get` reads at any time.
        """
        self._entered()
        return self._value

    def on_change(self, callback: Callable[[M, M], object]) -> None:
        """Call this with the configuration before and after, whenever it has changed while the block runs.

        What it raises goes to the event loop's exception handler, and keeps nobody else from being called. Raises
        `InvalidRequest` for a coroutine function: nobody would wait for it.
        """
        if not callable(callback) or iscoroutinefunction(callback):
            raise InvalidRequest(f"a callback is a plain function of two configurations, not {callback!r}")
        if len(self._callbacks) >= CALLBACKS_MAX:
            raise InvalidRequest(f"more than {CALLBACKS_MAX} callbacks")
        self._callbacks.append(callback)

    async def get(self, *, revision: int = 0, timeout: float | None = None) -> M:
        """Return the configuration as it is, or as it was at a revision. Raises `InvalidValue`, and as `KV.range`."""
        found = await self._kv.range(prefix=self._row, revision=revision, timeout=timeout)
        return self._load(found.kvs)

    async def history(self) -> AsyncIterator[ConfigChange]:
        """Yield the changes that are kept, the oldest first. Raises as `KV.history`."""
        async for event in self._kv.history(self._log):
            if event.type is EventType.PUT:
                yield _change(event.kv)

    # --- Changing --------------------------------------------------------------------------------------------------

    async def change(
        self, mapping: Mapping[str, Any] | None = None, /, *, note: str = "", timeout: float | None = None, **named: Any
    ) -> int:
        """Set these fields, all or none of them, and return the revision of that.

        Args:
            mapping: Fields by their names: for those that are called as an argument here.
            note: What `history` says of it.
            timeout: Seconds it may take.
            named: More fields.

        Raises: `InvalidRequest`: no such field, or the whole would not be valid; `InvalidValue`: what is stored is not;
            `NotApplied`; `MaybeApplied`.
        """
        fields = {**(mapping or {}), **named}
        unknown = sorted(fields.keys() - set(self._fields))
        if unknown:
            raise InvalidRequest(f"{self.name!r} has no field {unknown[0]!r}")

        async def work(tx: Stm) -> Stm:
            before = await tx.range(prefix=self._row)
            now: Any = self._load(before)
            try:
                value = dataclasses.replace(now, **fields)
            except ValueError as error:
                raise InvalidRequest(f"{self.name!r}: {error}") from error
            await self._set(tx, before, value, note)
            return tx

        return (await self._kv.transact(work, timeout=timeout)).revision

    async def rollback(self, revision: int, *, note: str = "", timeout: float | None = None) -> int:
        """Make it what it was at that revision, in a change of its own; return the revision of that.

        Raises: `InvalidValue`: it was not valid then; `Compacted`, `FutureRevision`; `NotApplied`; `MaybeApplied`.
        """
        past = await self.get(revision=whole(revision, "revision", least=1), timeout=timeout)

        async def work(tx: Stm) -> Stm:
            await self._set(tx, await tx.range(prefix=self._row), past, note or f"rolled back to {revision}")
            return tx

        return (await self._kv.transact(work, timeout=timeout)).revision

    async def _set(self, tx: Stm, before: Iterable[KeyValue], value: M, note: str) -> None:
        stands = self._texts(self._default) | {self._field(kv): kv.value for kv in before}
        texts = self._texts(value)  # it fits its annotations, so `validate` need not look
        try:
            if self._validate is not None:
                self._validate(value)
        except ValueError as error:
            raise InvalidRequest(f"{self.name!r}: {error}") from error
        changed = [name for name, text in texts.items() if stands[name] != text]
        for name in changed:
            tx.put(f"{self._row}{name}", texts[name])
        tx.put(self._log, _text({"fields": changed, "note": note}))

    def _load(self, kvs: Iterable[KeyValue]) -> M:
        """Return what is stored as an instance. Raises `InvalidValue`."""
        plain: dict[str, Any] = {}
        latest = KeyValue(self._row.encode(), b"", 0, 0, 0)
        for kv in kvs:
            name = self._field(kv)
            if name in self._fields:
                latest = max(latest, kv, key=lambda each: each.mod_revision)
                try:
                    plain[name] = kv.json()
                    _text(plain[name])  # Python reads what is no JSON: NaN, and text that is no UTF-8
                except (RecursionError, ValueError) as error:
                    text = f"{kv.key!r} holds no JSON: {error}"
                    raise InvalidValue(text, key=kv.key, mod_revision=kv.mod_revision, path=name) from None
        value = self._typed.load(dataclasses.replace(latest, key=self._row.encode(), value=_text(plain))).value
        try:
            if self._validate is not None:
                self._validate(value)
        except ValueError as error:
            raise InvalidValue(f"{self.name!r}: {error}", key=latest.key, mod_revision=latest.mod_revision) from error
        return value

    def _field(self, kv: KeyValue) -> str:
        """Return which field it is; others may have put what is none."""
        return kv.key.decode(errors="replace").removeprefix(self._row)

    def _texts(self, value: M) -> dict[str, bytes]:
        return {name: _text(each) for name, each in json.loads(self._typed.dump(value)).items()}

    # --- Following -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._view is not None:
            raise InvalidRequest("a configuration is entered once")
        self._view = view = await self._kv.view(prefix=self._row)
        self._look(view)
        self._following = asyncio.create_task(self._follow(view), name="pyraftkv-config")
        return self

    async def __aexit__(self, *exc: object) -> None:
        view = self._entered()
        assert self._following is not None
        self._following.cancel()
        try:
            await asyncio.wait([self._following])
        finally:
            await view.close()

    async def at_least(self, revision: int, *, timeout: float | None = None) -> M:
        """Wait until `value` is of that revision, of what was just changed, say; return it.

        Raises: `TimeoutError`; `InvalidRequest` before the block.
        """
        view = self._entered()
        await view.at_least(revision, timeout=timeout)
        self._look(view)
        return self._value

    def _entered(self) -> View:
        if self._view is None:
            raise InvalidRequest(f"{self.name!r} is followed in a block: enter it with 'async with'")
        return self._view

    async def _follow(self, view: View) -> None:
        while True:
            await view.wait(lambda view: view.revision > self.revision)
            self._look(view)

    def _look(self, view: View) -> None:
        if view.revision <= self.revision:
            return
        self.revision = view.revision
        before = self._value
        try:
            self._value, self.error = self._load(view.values()), None
        except InvalidValue as error:
            self.error = error
        if self._value != before:
            for callback in self._callbacks:
                _call(callback, before, self._value)


def _call(callback: Callable[[M, M], object], before: M, after: M) -> None:
    try:
        callback(before, after)
    except Exception as error:  # noqa: BLE001 - it is the program's own, and must not keep the rest from being told
        told = {"message": "a callback of a configuration failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(told)


def _text(plain: object) -> bytes:
    return to_bytes(json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def _change(kv: KeyValue) -> ConfigChange:
    try:
        plain = kv.json()
        fields, note = tuple(map(str, plain["fields"])), str(plain["note"])
    except (ValueError, TypeError, KeyError):
        fields, note = (), "somebody else's"
    return ConfigChange(kv.mod_revision, fields, note)
