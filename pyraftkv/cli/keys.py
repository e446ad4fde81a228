"""The verbs about keys: put, get, del, watch."""

from __future__ import annotations

import argparse
import os
import sys

from pyraftkv import errors
from pyraftkv.cli.common import DONE, client
from pyraftkv.cli.printing import batch_json, emit_json, print_delete, print_event, print_put, print_range
from pyraftkv.kv import Consistency
from pyraftkv.store.commands import FROM_KEY, SortOrder, SortTarget

SORT_TARGETS = {
    "CREATE": SortTarget.CREATE,
    "KEY": SortTarget.KEY,
    "MODIFY": SortTarget.MOD,
    "VALUE": SortTarget.VALUE,
    "VERSION": SortTarget.VERSION,
}
SORT_ORDERS = {"ASCEND": SortOrder.ASCEND, "DESCEND": SortOrder.DESCEND}
REVISION_BOUNDS = ("min-mod", "max-mod", "min-create", "max-create")
CONSISTENCIES: dict[str, Consistency] = {"l": "linearizable", "s": "local"}


async def put(args: argparse.Namespace) -> int:
    """Set a key."""
    if args.ignore_value and args.value == "-":
        value = b""
    else:
        value = sys.stdin.buffer.read() if args.value == "-" else os.fsencode(args.value)
    async with client(args) as kv:
        result = await kv.put(
            os.fsencode(args.key),
            value,
            lease=args.lease,
            prev_kv=args.prev_kv,
            ignore_value=args.ignore_value,
            ignore_lease=args.ignore_lease,
        )
    print_put(result, args.write_out)
    return DONE


async def get(args: argparse.Namespace) -> int:
    """Read a key or a range; a key that does not exist prints nothing and is no error, as in etcdctl."""
    start, end, prefix = key_arguments(args)
    order = SORT_ORDERS[args.order] if args.order else SortOrder.NONE
    if args.sort_by and not args.order:
        order = SortOrder.ASCEND
    async with client(args) as kv:
        result = await kv.range(
            start,
            end,
            prefix=prefix,
            revision=args.rev,
            limit=args.limit,
            sort=SORT_TARGETS[args.sort_by or "KEY"],
            order=order,
            keys_only=args.keys_only,
            count_only=args.count_only,
            min_mod_revision=args.min_mod_rev,
            max_mod_revision=args.max_mod_rev,
            min_create_revision=args.min_create_rev,
            max_create_revision=args.max_create_rev,
            consistency=CONSISTENCIES[args.consistency],
        )
    print_range(result, args)
    return DONE


async def delete(args: argparse.Namespace) -> int:
    """Delete a key or a range."""
    start, end, prefix = key_arguments(args)
    async with client(args) as kv:
        result = await kv.delete(start, end, prefix=prefix, prev_kv=args.prev_kv)
    print_delete(result, args.write_out)
    return DONE


async def watch(args: argparse.Namespace) -> int:
    """Print every change from now on, or from ``--rev`` on, until interrupted."""
    start, end, prefix = key_arguments(args)
    async with client(args) as kv:
        watching = kv.watch(start, end, prefix=prefix, start_revision=args.rev, prev_kv=args.prev_kv)
        async with watching:
            try:
                await watching.synced(timeout=args.timeout)
            except TimeoutError:
                raise errors.ReadTimeout(f"no member of {args.endpoints} answered in {args.timeout:g} s") from None
            async for batch in watching.batches():
                if args.write_out == "json":
                    emit_json(batch_json(batch))
                else:
                    for event in batch.events:
                        print_event(event)
    return DONE


def key_arguments(args: argparse.Namespace) -> tuple[bytes, bytes | None, bytes | None]:
    """Return start, end and prefix as `KV.range` takes them; a key alone ends right after itself."""
    key = os.fsencode(args.key)
    if args.prefix:
        return b"", None, key
    if args.from_key:
        return key, FROM_KEY, None
    if args.range_end is not None:
        return key, os.fsencode(args.range_end), None
    if not key:
        raise errors.InvalidRequest("a key must not be empty (with --prefix it stands for every key)")
    return key, key + b"\0", None
