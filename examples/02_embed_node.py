"""An application that carries its own durable, replicated store: a counter that survives every restart.

Run it twice and it goes on counting. For three of them that share one counter, on one machine or on three:

    python 02_embed_node.py data-a --name a --members a=127.0.0.1:7001,b=127.0.0.1:7002,c=127.0.0.1:7003
    python 02_embed_node.py data-b --name b --members a=127.0.0.1:7001,b=127.0.0.1:7002,c=127.0.0.1:7003
    python 02_embed_node.py data-c --name c --members a=127.0.0.1:7001,b=127.0.0.1:7002,c=127.0.0.1:7003
"""

import argparse
import asyncio
import contextlib

import pyraftkv
from pyraftkv.errors import RevisionMismatch
from pyraftkv.kv import KV

TIMES = 5


async def increment(db: KV, key: str) -> int:
    """Add one, however many others do so at the same moment: compare-and-swap on the revision that was read."""
    while True:
        found = await db.get(key)
        count = int(found.text) if found else 0
        try:
            await db.put(key, str(count + 1), if_revision=found.mod_revision if found else 0)
        except RevisionMismatch:
            continue  # somebody was faster: read again
        return count + 1


async def tell(db: KV, key: str, is_watching: asyncio.Event) -> None:
    """Print changes of the key, whoever makes them, until there were `TIMES`."""
    async with db.watch(key) as changes:
        await changes.synced()
        is_watching.set()
        seen = 0
        async for event in changes:
            print(f"watch: {key} is {event.kv.text} since revision {event.kv.mod_revision}")
            seen += 1
            if seen == TIMES:
                break


async def tell_count(db: KV) -> None:
    found = await db.get("visits")
    print(f"{found.text if found else 'no'} visits so far")


async def application(db: KV) -> None:
    """What your program does; it takes the `KV` protocol, so that a test can give it an in-memory cluster."""
    await tell_count(db)
    is_watching = asyncio.Event()
    watching = asyncio.create_task(tell(db, "visits", is_watching))
    await is_watching.wait()
    await asyncio.gather(*(increment(db, "visits") for _ in range(TIMES)))  # at the same time, and none is lost
    await watching
    await tell_count(db)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", nargs="?", default="visits.pyraftkv")
    parser.add_argument("--name", default="a")
    parser.add_argument("--members", default="", help="a=host:port,b=host:port; without it, a cluster of one")
    args = parser.parse_args()
    members = dict(member.split("=") for member in args.members.split(",") if member)
    # FileStorage in data_dir, TcpTransport at our own address. A member of a larger cluster waits for the others.
    async with pyraftkv.open(args.data_dir, name=args.name, listen=members.get(args.name), members=members) as node:
        await application(node)
        if len(members) > 1:
            # The others need a majority: in a real program every member serves for as long as it lives.
            print("still serving the others; Ctrl-C ends it")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


asyncio.run(main())
