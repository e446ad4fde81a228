"""Three real Raft nodes in one process: the leader dies, the data does not."""

import asyncio

import pyraftkv


async def main() -> None:
    async with pyraftkv.Cluster.in_memory(3) as cluster:  # three real Raft nodes, no ports, no disk
        db = cluster.client()  # follows the leader
        await db.put("greeting", "hello")
        await cluster.kill(cluster.leader)  # pull the plug
        print((await db.get("greeting")).text)


asyncio.run(main())
