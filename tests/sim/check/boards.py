"""Short histories, labelled by hand: what may happen in a linearizable store, and what must not."""

from __future__ import annotations

GOOD = {
    "nothing at all": "",
    "one after the other": """
        a 0-1 put x 1 -> 2
        a 2-3 get x -> x=1@2 at 2
        a 4-5 put x 2 prev -> 3 before x=1@2
        a 6-7 get x -> x=2@3/2,2 at 3
    """,
    "a read overlaps a write and sees it": """
        a 0-10 put x 1 -> 2
        b 1-2 get x -> x=1@2 at 2
    """,
    "a read overlaps a write and does not see it": """
        a 0-10 put x 1 -> 2
        b 1-2 get x -> - at 1
    """,
    "writes overlap and take effect in either order": """
        a 0-10 put x 1 -> 3
        b 1-9 put x 2 -> 2
        c 11-12 get x -> x=1@3/2,2 at 3
    """,
    "an unknown write took effect": """
        a 0-1 put x 1 -> ?
        b 2-3 get x -> x=1@2 at 2
    """,
    "an unknown write was lost": """
        a 0-1 put x 1 -> ?
        b 2-3 get x -> - at 1
        b 4-5 put y 1 -> 2
    """,
    "an unknown write takes effect long after": """
        a 0- put x 1 -> ?
        b 2-3 get x -> - at 1
        b 4-5 put y 1 -> 2
        b 6-7 get x -> x=1@3 at 3
    """,
    "of two unknown writes the one that was seen made the revision": """
        a 0-1 put x 1 -> ?
        b 0-1 put x 2 -> ?
        c 2-3 put y 1 -> 3
        c 4-5 get x -> x=2@2 at 3
    """,
    "unknown writes that nobody saw fill the revisions between": """
        a 0-1 put x 1 -> ?
        b 0-1 put y 2 -> ?
        c 2-3 put z 1 -> 4
    """,
    "which unknown write it was shows much later": """
        a 0-1 put x 1 -> ?
        b 0-1 put y 1 -> ?
        d 2-3 put z 1 -> 3
        d 4-5 put z 2 -> 4
        d 6-7 get x -> - at 4
        d 8-9 get y -> y=1@2 at 4
    """,
    "a refused write did nothing": """
        a 0-1 put x 1 -> refused
        b 2-3 put x 2 -> 2
        b 4-5 get x -> x=2@2 at 2
    """,
    "a key is deleted and made anew": """
        a 0-1 put x 1 -> 2
        a 2-3 delete x prev -> 1 deleted at 3 before x=1@2
        a 4-5 delete x -> 0 deleted at 3
        a 6-7 put x 2 -> 4
        a 8-9 get x -> x=2@4 at 4
    """,
    "a range is deleted at one revision": """
        a 0-1 put a 1 -> 2
        a 2-3 put b 1 -> 3
        a 4-5 put d 1 -> 4
        a 6-7 delete a c prev -> 2 deleted at 5 before a=1@2 b=1@3
        a 8-9 range a z -> d=1@4 at 5
    """,
    "a transaction changes two keys at one revision": """
        a 0-1 txn x@0 {put x 1; put y 1; get x} -> then {2; 2; x=1@2 at 2} at 2
        b 2-3 txn x@0 {put x 9} {get y} -> else {y=1@2 at 2} at 2
    """,
    "only one of two creations wins": """
        a 0-9 txn x@0 {put x 1} {get x} -> then {2} at 2
        b 0-9 txn x@0 {put x 2} {get x} -> else {x=1@2 at 2} at 2
    """,
    "an old revision is read": """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 get x at 2 -> x=1@2 at 3
    """,
    "a local read lags behind": """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        b 4-5 n1:local get x -> x=1@2 at 2
        b 6-7 n2:local get x -> - at 1
        b 8-9 n1:local get x -> x=2@3/2,2 at 3
    """,
    "compaction refuses what is older": """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 compact 3 -> 3
        b 6-7 get x at 2 -> compacted 3
        b 8-9 get x at 3 -> x=2@3/2,2 at 3
        b 10-11 compact 3 -> compacted 3
    """,
    "an unknown compaction was done": """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4- compact 3 -> ?
        b 6-7 get x at 2 -> x=1@2 at 3
        b 8-9 get x at 2 -> compacted 3
    """,
    "a revision that is not there yet is refused": """
        a 0-1 put x 1 -> 2
        a 2-3 get x at 5 -> future 2
    """,
    "the value is kept if the key is there": """
        a 0-1 put x same -> no key
        a 2-3 put x 1 -> 2
        a 4-5 put x same -> 3
        a 6-7 get x -> x=1@3/2,2 at 3
    """,
    "a key was missing, between a deletion and the next put": """
        a 0-1 put x 1 -> 2
        a 2-9 delete x -> 1 deleted at 3
        b 3-8 put x same -> no key
        a 10-11 put x 2 -> 4
    """,
    "a transaction misses a key, before it is put": """
        a 0-9 put x 1 -> 2
        b 1-8 txn x@0 {put x same} -> no key
        c 1-8 txn x@2 {put x same} {put y 1} -> then {3} at 3
    """,
    "a transaction misses a key that an unknown write may have deleted": """
        a 0-1 put x 1 -> 2
        a 2- delete x -> ?
        b 4-5 txn x@0 {put x same} -> no key
    """,
    "a transaction is refused for the branch that it takes": """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 compact 3 -> 3
        b 6-7 txn x@3 {get x at 2} {get x at 3} -> compacted 3
    """,
    "everything at once, and all values equal": """
        a 0-9 put x 1 -> 4
        b 0-9 put x 1 -> 2
        c 0-9 put x 1 -> ?
        d 0-9 get x -> x=1@3/2,2 at 3
        e 0-9 get x -> - at 1
        f 0-9 txn x@2 {get x} {get x} -> then {x=1@2 at 2} at 2
    """,
    "a write is answered long after it was read": """
        a 0-99 put x 1 -> 2
        b 1-2 get x -> x=1@2 at 2
        b 3-4 put x 2 prev -> 3 before x=1@2
        b 5-6 get x at 2 -> x=1@2 at 3
    """,
    "a chain of unknown writes, each on top of the last": """
        a 0-1 put x 1 -> ?
        a 2-3 txn x@2 {put x 2} -> ?
        a 4-5 txn x@3 {put x 3} -> ?
        a 6-7 txn x@4 {put x 4} -> ?
        b 8-9 get x -> x=4@5/2,4 at 5
    """,
}

BAD = {
    "a stale read": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        b 4-5 get x -> x=1@2 at 2
        """,
        "#2 saw revision 2, but #1, which had ended before it began, made revision 3",
    ),
    "a stale read that claims to be fresh": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        b 4-5 get x -> x=1@2 at 3
        """,
        "must be: 'x' = '2' (mod 3, version 2)",
    ),
    "two reads go back": (
        """
        a 0-20 put x 1 -> 2
        b 1-2 get x -> x=1@2 at 2
        c 3-4 get x -> - at 1
        """,
        "saw revision 1, but #1",
    ),
    "a lost write": (
        """
        a 0-1 put x 1 -> 2
        b 2-3 get x -> - at 2
        """,
        "it must be: 'x' = '1'",
    ),
    "two writes at one revision": (
        """
        a 0-1 put x 1 -> 2
        b 0-1 put y 1 -> 2
        """,
        "both say that they made revision 2",
    ),
    "writes in the wrong order": (
        """
        a 0-1 put x 1 -> 3
        b 2-3 put y 1 -> 2
        """,
        "#1 made revision 2, but #0",
    ),
    "a write applied twice": (
        """
        a 0-1 put x 1 -> 2
        b 2-3 get x -> x=1@3/2,2 at 3
        """,
        "#0 wrote that, but made revision 2",
    ),
    "a refused write is there": (
        """
        a 0-1 put x 1 -> refused
        b 2-3 get x -> x=1@2 at 2
        """,
        "#0 wrote that, but was refused",
    ),
    "a value that nobody wrote": (
        """
        a 0-1 put x 1 -> ?
        b 2-3 get x -> x=7@2 at 2
        """,
        "nobody in the history can have made revision 2, of which #1 saw: 'x' = '7'",
    ),
    "a value from the future": (
        """
        b 0-1 get x -> x=1@2 at 2
        a 2-3 put x 1 -> 2
        """,
        "#1 made revision 2, but #0",
    ),
    "an unknown write was seen before it began": (
        """
        b 0-1 get x -> x=1@2 at 2
        a 2- put x 1 -> ?
        """,
        "nobody in the history can have made revision 2",
    ),
    "an unknown write was seen and then not": (
        """
        a 0- put x 1 -> ?
        b 1-2 get x -> x=1@2 at 2
        b 3-4 get x -> - at 2
        """,
        "#2 (get 'x') was answered: nothing at revision 2; it must be: 'x' = '1'",
    ),
    "an unknown write took effect twice": (
        """
        a 0- put x 1 -> ?
        b 1-2 get x -> x=1@2 at 2
        b 3-4 get x -> x=1@3/2,2 at 3
        """,
        "nobody in the history can have made revision 3",
    ),
    "a revision that nobody made": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 4
        """,
        "nobody in the history can have made revision 3",
    ),
    "two creations win": (
        """
        a 0-9 txn x@0 {put x 1} -> then {2} at 2
        b 0-9 txn x@0 {put x 2} -> then {3} at 3
        """,
        "must be: else nothing",
    ),
    "half a transaction": (
        """
        a 0-1 txn x@0 {put x 1; put y 1} -> then {2; 2} at 2
        b 2-3 get y -> - at 2
        """,
        "must be: 'y' = '1'",
    ),
    "the wrong value before": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 put x 3 prev -> 4 before x=1@2
        """,
        "ok, before it 'x' = '2'",
    ),
    "a wrong version": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 get x -> x=2@3/2,3 at 3
        """,
        "version 3) at revision 3; it must be",
    ),
    "a deletion counts too many": (
        """
        a 0-1 put a 1 -> 2
        a 2-3 delete a z -> 2 deleted at 3
        """,
        "2 deleted at revision 3; it must be: 1 deleted",
    ),
    "a range leaves out a key": (
        """
        a 0-1 put a 1 -> 2
        a 2-3 put b 1 -> 3
        a 4-5 range a z -> a=1@2 at 3
        """,
        "must be: 'a' = '1' (mod 2, version 1); 'b' = '1'",
    ),
    "a range is torn": (
        """
        a 0-1 put a 1 -> 2
        a 2-3 put b 1 -> 3
        a 4-5 put a 2 -> 4
        a 6-7 put b 2 -> 5
        b 0-9 range a z -> a=1@2 b=2@5/3,2 at 5
        """,
        "#1 (range",
    ),
    "an old revision reads the present": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 get x at 2 -> x=2@3/2,2 at 3
        """,
        "(get 'x' at revision 2) was answered",
    ),
    "a compacted revision is read": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 compact 3 -> 3
        b 6-7 get x at 2 -> x=1@2 at 3
        """,
        "#3 read revision 2, but #2, which had ended before it began, compacted 3",
    ),
    "an old revision is read at a revision that came after its compaction": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-20 put x 3 -> 4
        b 4-20 compact 3 -> 3
        c 4-20 get x at 2 -> x=1@2 at 4
        """,
        "#4 read revision 2 after #3 had compacted it",
    ),
    "a compaction goes back": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-20 put x 3 -> 4
        b 4-20 compact 3 -> 3
        c 4-20 compact 2 -> 4
        """,
        "#4 compacted less than #3, but at a later revision",
    ),
    "refused as compacted, which nobody did": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        b 6-7 get x at 2 -> compacted 3
        """,
        "found 3 compacted, which nobody did",
    ),
    "refused before it was compacted": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        b 4-5 get x at 2 -> compacted 3
        a 6-7 compact 3 -> 3
        """,
        "#3 compacted 3, but #2",
    ),
    "refused as from the future, which it is not": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 get x at 2 -> future 2
        """,
        "was answered: FutureRevision",
    ),
    "a key is missing that is there": (
        """
        a 0-1 put x 1 -> 2
        b 2-3 put x same -> no key
        """,
        "#1 was refused with KeyNotFound, but #0",
    ),
    "a read of the present is refused as compacted": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 compact 2 -> 2
        b 4-5 get x -> compacted 2
        """,
        "#2 (get 'x') cannot be answered: Compacted",
    ),
    "a put is refused as compacted": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 compact 2 -> 2
        b 4-5 put x 2 -> compacted 2
        """,
        "#2 (put 'x' = '2') cannot be answered: Compacted",
    ),
    "a put that asks for no key does not find it": (
        """
        a 0-1 put x 1 -> no key
        """,
        "#0 (put 'x' = '1') cannot be answered: KeyNotFound",
    ),
    "a transaction misses a key that is there": (
        """
        a 0-1 put x 1 -> 2
        b 2-3 txn x@0 {put x same} -> no key
        """,
        "#1 was refused with KeyNotFound, but #0, which had ended before it began, made revision 2",
    ),
    "a transaction misses a key that it would not have touched": (
        """
        a 0-1 txn x@0 {put x 1} {put x same} -> no key
        """,
        "it fits at no revision",
    ),
    "a transaction is refused for a branch that it does not take": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4-5 compact 3 -> 3
        b 6-7 txn x@3 {get x at 3} {get x at 2} -> compacted 3
        """,
        "#3 was refused with Compacted",
    ),
    "a revision beyond all bounds": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 get x -> x=1@2 at 999999999999
        """,
        "revisions up to 999999999999 were made by nobody",
    ),
    "an unknown compaction was done and then not": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> 3
        a 4- compact 3 -> ?
        b 6-7 get x at 2 -> compacted 3
        b 8-9 get x at 2 -> x=1@2 at 3
        """,
        "#4 read revision 2, but #3",
    ),
    "a transaction sees two states": (
        """
        a 0-1 put a 1 -> 2
        b 2-9 txn a@2 {range a z; put c 1; range a z} -> then {a=1@2 at 2; 3; a=1@2 at 3} at 3
        """,
        "#1 (txn",
    ),
    "two nested transactions lose an update": (
        """
        a 0-1 put x 1 -> 2
        a 2-9 txn x@2 {get x; put x 2} -> then {x=1@2 at 2; 3} at 3
        b 2-9 txn x@2 {get x; put x 3} -> then {x=1@2 at 2; 4} at 4
        """,
        "#2 (txn",
    ),
    "an old revision changes": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put y 1 -> 3
        a 4-5 get x at 2 -> x=1@2 at 3
        a 6-7 get x at 2 -> - at 3
        """,
        "#3 (get 'x' at revision 2) was answered: nothing",
    ),
    "a refusal at the deadline, and the revision is there": (
        """
        a 0-1 put x 1 -> 2
        a 2-3 put x 2 -> refused
        b 4-5 put y 1 -> 4
        """,
        "nobody in the history can have made revision 3",
    ),
}

BAD_FOR_REVISIONS = {
    "a local read sees what is not done yet": (
        """
        b 0-1 n1:local get x -> x=1@2 at 2
        a 2-3 put x 1 -> 2
        """,
        "#1 made revision 2, but #0",
    ),
    "local reads of one member go back": (
        """
        a 0-1 put x 1 -> 2
        b 2-3 n1:local get x -> x=1@2 at 2
        c 4-5 n1:local get x -> - at 1
        """,
        "#2 saw revision 1, but #1, which had ended before it began on n1, saw revision 2",
    ),
    "what a local read saw is gone": (
        """
        a 0- put x 1 -> ?
        b 2-3 n1:local get x -> x=1@2 at 2
        c 4-5 get x -> - at 1
        """,
        "#2 saw revision 1, but #1",
    ),
    "a local read of a state that never was": (
        """
        a 0-1 put a 1 -> 2
        a 2-3 put b 1 -> 3
        b 4-5 n1:local range a z -> b=1@3 at 3
        """,
        "must be: 'a' = '1'",
    ),
}
"""What is wrong with reads that are not linearizable, which the search does not look at."""


def untouched(count: int) -> str:
    """Return a history with two unknown writes that were done, and ``count`` of which others saw that they were not."""
    lines = [f"a {i}-{i} put k{i} 0 -> {2 + i}" for i in range(count)]
    lines += ["u 20- put y 1 -> ?", "u 20- put z 1 -> ?", *(f"u 21- put k{i} 1 -> ?" for i in range(count))]
    lines += [f"b 30-31 put x 1 -> {4 + count}"]
    lines += [f"b {40 + i}-{40 + i} get k{i} -> k{i}=0@{2 + i} at {4 + count}" for i in range(count)]
    return "\n".join(lines)
