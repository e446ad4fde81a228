"""Workers: jobs in order, outcomes on the loop."""

from __future__ import annotations

import asyncio
import threading

from pyraftkv.log import ThreadWorker


def test_jobs_run_in_order_on_one_other_thread():
    """And their results come back to the loop's thread, in order."""

    async def main():
        worker = ThreadWorker("test")
        finished = asyncio.get_running_loop().create_future()
        seen, threads = [], set()

        def job(number: int):
            threads.add(threading.get_ident())
            return number

        def then(number, error):
            seen.append((number, error, threading.get_ident()))

        for number in range(100):
            worker.submit(lambda number=number: job(number), then)
        worker.submit(lambda: None, lambda *_: finished.set_result(None))
        await finished
        worker.stop()
        assert seen == [(number, None, threading.get_ident()) for number in range(100)]
        assert len(threads) == 1
        assert threading.get_ident() not in threads

    asyncio.run(main())


def test_an_error_is_an_outcome():
    """Whatever a job raises comes back, and the next job runs."""

    async def main():
        worker = ThreadWorker("test")
        outcome = asyncio.get_running_loop().create_future()
        worker.submit(lambda: 1 // 0, lambda result, error: outcome.set_result((result, type(error))))
        assert await outcome == (None, ZeroDivisionError)
        again = asyncio.get_running_loop().create_future()
        worker.submit(lambda: 5, lambda result, _error: again.set_result(result))
        assert await again == 5
        worker.stop()
        worker.stop()
        worker._thread.join(10)
        assert not worker._thread.is_alive()

    asyncio.run(main())


def test_a_closed_loop_ends_the_thread():
    """Nobody is left to tell: the thread goes, quietly."""
    release = threading.Event()

    async def main():
        worker = ThreadWorker("test")
        worker.submit(release.wait, lambda *_: None)
        return worker

    worker = asyncio.run(main())
    release.set()
    worker._thread.join(10)
    assert not worker._thread.is_alive()
