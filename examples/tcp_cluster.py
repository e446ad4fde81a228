"""Three members in three processes on this machine, with durable data directories. Ctrl-C stops them.

Start it, put something, kill a process (the process ids are printed), ask again. Kill everything and start it again
with the same directory: the data is still there. A member that dies is started again after a moment.
"""

import argparse
import asyncio
import shutil
import signal
import sys
from pathlib import Path

import pyraftkv
from pyraftkv.errors import Unavailable

NAMES = ("n1", "n2", "n3")
RESTART_SECONDS = 3.0


async def start(name: str, address: str, members: str, folder: Path) -> asyncio.subprocess.Process:
    arguments = ["--name", name, "--listen", address, "--members", members, "--data-dir", str(folder / name)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pyraftkv", "serve", "--log-level", "warning", *arguments
    )


async def supervise(name: str, address: str, members: str, folder: Path) -> None:
    """Keep one member running until cancelled, then let it hand over and close."""
    while True:
        process = await start(name, address, members, folder)
        print(f"{name} runs at {address}, process {process.pid}", flush=True)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            if process.returncode is None:
                process.terminate()
                await process.wait()
            raise
        print(f"{name} ended ({status}); it starts again in {RESTART_SECONDS:g} s", flush=True)
        await asyncio.sleep(RESTART_SECONDS)


async def tell_when_ready(endpoints: str) -> None:
    async with pyraftkv.connect(endpoints) as db:
        while True:
            try:
                await db.get("ready")  # a linearizable read: a quorum is there
                break
            except Unavailable:
                continue
    command = "pyraftkv" if shutil.which("pyraftkv") else f"{sys.executable} -m pyraftkv"
    print(
        f"""
The cluster is ready. In another terminal:

    {command} --endpoints {endpoints} put greeting hello
    {command} --endpoints {endpoints} get greeting
    {command} --endpoints {endpoints} endpoint status -w table

Ctrl-C stops all three.
""",
        flush=True,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("tcp-cluster.pyraftkv"))
    parser.add_argument("--ports", default="2479,2480,2481", help="three ports of this machine")
    args = parser.parse_args()
    addresses = dict(zip(NAMES, (f"127.0.0.1:{port}" for port in args.ports.split(",")), strict=True))
    members = ",".join(f"{name}={address}" for name, address in addresses.items())
    async with asyncio.TaskGroup() as group:
        for name, address in addresses.items():
            group.create_task(supervise(name, address, members, args.data_dir))
        group.create_task(tell_when_ready(",".join(addresses.values())))


signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # who is told to end leaves no members
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("stopped")
