from __future__ import annotations

import pytest

from pyraftkv.store import keyindex, pages, ranges, snapshot, txn, watch


@pytest.fixture(scope="module")
def tiny_bounds():
    """Shrink pages, chunks, slices and queues, so that a few keys cross every boundary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PAGE_BYTES_TARGET", 500)
        patch.setattr(keyindex, "CHUNK_KEYS_MAX", 4)
        patch.setattr(keyindex, "FRESH_KEYS_MAX", 2)
        for module in (ranges, txn):
            patch.setattr(module, "SLICE_KEYS", 2)
        patch.setattr(ranges, "SORT_RUN_KEYS", 3)
        patch.setattr(watch, "PENDING_EVENTS_MAX", 3)
        patch.setattr(watch, "TAKE_RECORDS_MAX", 3)
        patch.setattr(snapshot, "CHUNK_BYTES_MAX", 300)
        yield
