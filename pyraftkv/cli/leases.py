"""``lease grant|revoke|keep-alive|timetolive|list``, printed as etcdctl prints them: ids are hexadecimal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from base64 import b64encode

from pyraftkv import errors
from pyraftkv.cli.common import DONE, NOT_APPLIED, client
from pyraftkv.cli.printing import emit, emit_json, header_json, readable
from pyraftkv.leases import RENEWALS_PER_TTL


def lease_id(text: str) -> int:
    """Parse an id as it is printed. Raises `ArgumentTypeError`."""
    with contextlib.suppress(ValueError):
        if (lease := int(text, 16)) > 0:
            return lease
    raise argparse.ArgumentTypeError(f"{text!r} is no id of a lease: hexadecimal, as `lease grant` printed it")


async def lease_grant(args: argparse.Namespace) -> int:
    """Grant a lease."""
    async with client(args) as kv:
        granted = await kv.leases.grant(args.ttl)
    if args.write_out == "json":
        emit_json({"header": header_json(granted.revision), "ID": granted.id, "TTL": granted.ttl})
    else:
        emit(f"lease {granted.id:016x} granted with TTL({granted.ttl}s)\n")
    return DONE


async def lease_revoke(args: argparse.Namespace) -> int:
    """End a lease, and delete its keys."""
    async with client(args) as kv:
        revoked = await kv.leases.revoke(args.lease)
    if args.write_out == "json":
        emit_json({"header": header_json(revoked.revision)})
    else:
        emit(f"lease {args.lease:016x} revoked\n")
    return DONE


async def lease_keep_alive(args: argparse.Namespace) -> int:
    """Renew a lease again and again, or once, until it is gone."""
    async with client(args) as kv:
        while True:
            try:
                ttl = await kv.leases.keep_alive(args.lease)
            except errors.LeaseNotFound:
                emit(f"lease {args.lease:016x} expired or revoked.\n")
                return NOT_APPLIED
            if args.write_out == "json":
                emit_json({"ID": args.lease, "TTL": ttl})
            else:
                emit(f"lease {args.lease:016x} keepalived with TTL({ttl})\n")
            if args.once:
                return DONE
            await asyncio.sleep(ttl / RENEWALS_PER_TTL)


async def lease_time_to_live(args: argparse.Namespace) -> int:
    """Print what is left of a lease, and what hangs on it."""
    async with client(args) as kv:
        info = await kv.leases.time_to_live(args.lease, keys=args.keys)
    if args.write_out == "json":
        keys = [b64encode(key).decode() for key in info.keys]
        table = {"ID": info.id, "TTL": info.ttl, "grantedTTL": info.granted_ttl}
        emit_json({**table, "keys": keys} if args.keys else table)
    elif info.ttl < 0:
        emit(f"lease {args.lease:016x} already expired\n")
    else:
        keys_text = f", attached keys([{' '.join(map(readable, info.keys))}])" if args.keys else ""
        emit(f"lease {info.id:016x} granted with TTL({info.granted_ttl}s), remaining({info.ttl}s){keys_text}\n")
    return DONE


async def lease_list(args: argparse.Namespace) -> int:
    """Print which leases there are."""
    async with client(args) as kv:
        ids = await kv.leases.list()
    if args.write_out == "json":
        emit_json({"leases": [{"ID": lease} for lease in ids]})
    else:
        emit(f"found {len(ids)} leases\n", *[f"{lease:016x}\n" for lease in ids])
    return DONE
