"""Reading every key back on one member, from that member's own memory, and comparing it with the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pyraftkv.demo.load import Written, digest
from pyraftkv.kv import KV
from pyraftkv.store.values import KeyValue

BATCH_BYTES_MAX = 1024 * 1024
"""Values in one answer; a frame to a client holds 2 MiB."""

BATCH_KEYS_MAX = 500

EXAMPLES_MAX = 5
"""Keys that are named in a verdict."""


@dataclass
class Verdict:
    """What one member has of what was acknowledged."""

    node: str
    keys: int = 0
    """Keys found."""
    lost: int = 0
    """Acknowledged, and not there."""
    duplicated: int = 0
    """Put once, and at another version than 1."""
    different: int = 0
    """Other bytes than on the disk, or a key that nobody put."""
    changed: int = 0
    """Files that changed on the disk since they were put; the value is what was put."""
    examples: list[str] = field(default_factory=list)
    """Some of what is wrong."""

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.duplicated or self.different)


async def check(
    verdict: Verdict, kv: KV, *, acknowledged: Mapping[bytes, Written], unknown: Mapping[bytes, Written]
) -> None:
    """Read every key on the member that ``kv`` is connected to (consistency "local"), and write down what is found."""
    everything = {**acknowledged, **unknown}
    below = b""
    for batch in _batches(everything):
        # From right behind the last batch on, so that a key that nobody put shows wherever it stands.
        result = await kv.range(below, batch[-1] + b"\0", consistency="local")
        below = batch[-1] + b"\0"
        found = {kv_.key: kv_ for kv_ in result.kvs}
        for key in batch:
            if key in acknowledged and key not in found:
                _complain(verdict, "lost", key)
        for key, kv_ in found.items():
            _judge(verdict, kv_, everything.get(key))
    rest = await kv.range(below, keys_only=True, consistency="local")
    for kv_ in rest.kvs:
        _judge(verdict, kv_, None)


def _judge(verdict: Verdict, kv: KeyValue, written: Written | None) -> None:
    verdict.keys += 1
    if written is None:
        _complain(verdict, "different", kv.key)
        return
    if kv.version != 1 or kv.create_revision != kv.mod_revision:
        _complain(verdict, "duplicated", kv.key)
    try:
        on_disk = written.piece.read()
    except OSError:
        on_disk = None
    if kv.value == on_disk:
        return
    if digest(kv.value) != written.digest:
        _complain(verdict, "different", kv.key)
    else:
        verdict.changed += 1


def _complain(verdict: Verdict, what: str, key: bytes) -> None:
    setattr(verdict, what, getattr(verdict, what) + 1)
    if len(verdict.examples) < EXAMPLES_MAX:
        verdict.examples.append(f"{what}: {key!r}")


def _batches(written: Mapping[bytes, Written]) -> Iterator[list[bytes]]:
    """Yield the keys in order, as many at a time as one answer should hold."""
    batch: list[bytes] = []
    size = 0
    for key in sorted(written):
        if batch and (size + written[key].size > BATCH_BYTES_MAX or len(batch) >= BATCH_KEYS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += written[key].size
    if batch:
        yield batch
