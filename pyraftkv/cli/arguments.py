"""The command line: every verb with its flags."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Coroutine, Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

import pyraftkv
from pyraftkv.backup import BUMP_REVISION
from pyraftkv.cli.common import DEFAULT_ADDRESS, DONE, USAGE
from pyraftkv.cli.disk import doctor, wal_dump, wal_verify
from pyraftkv.cli.endpoints import endpoint_hashkv, endpoint_health, endpoint_status
from pyraftkv.cli.holding import elect, lock
from pyraftkv.cli.keys import CONSISTENCIES, REVISION_BOUNDS, SORT_ORDERS, SORT_TARGETS, delete, get, put, watch
from pyraftkv.cli.leases import lease_grant, lease_id, lease_keep_alive, lease_list, lease_revoke, lease_time_to_live
from pyraftkv.cli.loading import CLIENTS_MAX, LOADS, bench, check_perf
from pyraftkv.cli.membership import (
    member_add,
    member_demote,
    member_list,
    member_named,
    member_promote,
    member_remove,
    member_replace,
    member_update,
    move_leader,
)
from pyraftkv.cli.printing import emit
from pyraftkv.cli.rebuilding import rebuild
from pyraftkv.cli.recovering import recover
from pyraftkv.cli.serving import serve
from pyraftkv.cli.snapshots import snapshot_restore, snapshot_save, snapshot_status
from pyraftkv.cli.top import top as show_top
from pyraftkv.cli.transactions import TXN_HELP, txn
from pyraftkv.cli.upkeep import KINDS, alarm_disarm, alarm_list, assignment, compaction, settings
from pyraftkv.recipes.session import TTL_DEFAULT

Add = Callable[..., argparse.ArgumentParser]
"""Adds a verb, by its name, what runs it and one line, and returns its parser."""

ENDPOINTS_VARIABLE = "PYRAFTKV_ENDPOINTS"
DEFAULT_TIMEOUT_SECONDS = 5.0


async def demo(args: argparse.Namespace) -> int:
    """Kill a leader under load, then everybody, and count what was lost."""
    from pyraftkv.demo import run

    return await run(
        tree=args.path,
        seconds=args.seconds,
        data_dir=args.data_dir,
        keep=args.keep,
        out=sys.stdout,
    )


def sim(args: argparse.Namespace) -> int:
    """Run a cluster in virtual time, under the faults of a seed, and check everything it does."""
    from pyraftkv.cli.simulating import run

    return run(args)


async def version(args: argparse.Namespace) -> int:  # noqa: ARG001  (every verb takes them)
    """Say which version this is."""
    emit(f"pyraftkv {pyraftkv.__version__}\n")
    return DONE


GLOBALS = frozenset({"endpoints", "timeout", "write_out", "tls_ca", "tls_cert", "tls_key", "log_level"})
"""What `add_globals` adds."""


class Formatter(argparse.HelpFormatter):
    """Leaves what every verb takes out of the line of usage, which is to show what is a verb's own."""

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: Any = None) -> None:
        """Take what is shown as the usage."""
        super().add_usage(usage, [each for each in actions if each.dest not in GLOBALS], groups, prefix)


class RawFormatter(Formatter, argparse.RawDescriptionHelpFormatter):
    """The same, and leaves the lines of descriptions as they are."""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line; twenty lines of usage above it would hide that."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.formatter_class = Formatter

    def error(self, message: str) -> NoReturn:
        """End with `USAGE`."""
        self.exit(USAGE, f"Error: {nearest(message)}; see `{self.prog} --help`\n")


def nearest(message: str) -> str:
    """Return a complaint of `argparse` with the choice that was perhaps meant in place of a list of all.

    >>> nearest("argument VERB: invalid choice: 'gte' (choose from 'get', 'put')")
    "argument VERB: there is no 'gte'; did you mean 'get'?"
    """
    found = re.fullmatch(r"(.*): invalid choice: '(.*)' \(choose from (.*)\)", message)
    close = get_close_matches(found[2], re.findall(r"[\w-]+", found[3]), n=1) if found else []
    return f"{found[1]}: there is no '{found[2]}'; did you mean '{close[0]}'?" if found and close else message


def seconds(text: str) -> float:
    """Parse a wait: ``5``, ``5s``, ``500ms`` or ``1m``, above zero. Raises `ArgumentTypeError`."""
    number, factor = text, 1.0
    for unit, unit_seconds in (("ms", 0.001), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            number, factor = text.removesuffix(unit), unit_seconds
            break
    with contextlib.suppress(ValueError):
        if 0 < (value := float(number) * factor) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no wait above zero, such as 5, 5s, 500ms or 1m")


def seeds(text: str) -> range:
    """Parse ``A..B``: every seed from A to B, both included. Raises `ArgumentTypeError`."""
    first, _, last = text.partition("..")
    with contextlib.suppress(argparse.ArgumentTypeError):
        if found := range(count(first), count(last) + 1):
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is no range A..B, such as 1..20")


def count(text: str) -> int:
    """Parse a whole number that is not negative. Raises `ArgumentTypeError`."""
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")


def directory(text: str) -> str:
    """Take the name of a directory. Raises `ArgumentTypeError` for none: a script's variable that is not set, say."""
    if text:
        return text
    raise argparse.ArgumentTypeError("it has a name, or is left out")


def positive(text: str) -> int:
    """Parse a whole number above zero. Raises `ArgumentTypeError`."""
    if value := count(text):
        return value
    raise argparse.ArgumentTypeError("it is 1 at least")


def add_globals(parser: argparse.ArgumentParser, *, again: bool) -> None:
    """Add what every verb takes; ``again`` on the verb itself, where it must not undo what stood before it."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if again else value

    def told(text: str) -> str:
        return argparse.SUPPRESS if again else text

    briefly = "--endpoints, --timeout, -w, --tls-ca, --tls-cert, --tls-key, --log-level: see `pyraftkv --help`"
    group = parser.add_argument_group("global options", briefly if again else None)
    group.add_argument(
        "--endpoints",
        default=default(os.environ.get(ENDPOINTS_VARIABLE) or DEFAULT_ADDRESS),
        help=told(f"members to ask, host:port,host:port (${ENDPOINTS_VARIABLE}, or {DEFAULT_ADDRESS})"),
    )
    group.add_argument(
        "--timeout",
        "--command-timeout",
        type=seconds,
        default=default(DEFAULT_TIMEOUT_SECONDS),
        help=told(f"the longest wait for an answer ({DEFAULT_TIMEOUT_SECONDS:g}s)"),
    )
    group.add_argument(
        "-w", "--write-out", choices=["simple", "table", "json"], default=default("simple"), help=told("how to print")
    )
    for flag, short, text in (
        ("--tls-ca", "--cacert", "file of the authority that signs members"),
        ("--tls-cert", "--cert", "file of our certificate"),
        ("--tls-key", "--key", "file of our private key"),
    ):
        group.add_argument(flag, short, metavar="FILE", default=default(None), help=told(text))
    levels = ["debug", "info", "warning", "error"]
    group.add_argument(
        "--log-level", choices=levels, default=default(None), help=told("what is told on standard error")
    )


def add_range_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a key, and the ways to make it a range."""
    parser.add_argument("key", metavar="KEY", help="'' with --prefix: every key")
    parser.add_argument(
        "range_end", metavar="RANGE_END", nargs="?", help="every key from KEY up to, not including, this one"
    )
    parser.add_argument("--prefix", action="store_true", help="every key that begins with KEY")
    parser.add_argument("--from-key", action="store_true", help="every key from KEY on")


def add_key_verbs(add: Add) -> None:
    """Add put, get, del, txn and watch."""
    verb = add("put", put, "set a key")
    verb.add_argument("key", metavar="KEY", help="as text; '--' before it lets it begin with '-'")
    verb.add_argument(
        "value", metavar="VALUE", nargs="?", default="-", help="'-' or nothing: read it from standard input"
    )
    verb.add_argument("--prev-kv", action="store_true", help="print what stood there before")
    verb.add_argument("--ignore-value", action="store_true", help="keep the value; give none")
    verb.add_argument("--ignore-lease", action="store_true", help="keep the lease")
    verb.add_argument(
        "--lease", metavar="ID", type=lease_id, default=0, help="the lease that it vanishes with (hexadecimal)"
    )

    verb = add("get", get, "read a key or a range")
    add_range_arguments(verb)
    verb.add_argument("--limit", type=count, default=0, help="at most this many keys")
    verb.add_argument("--rev", type=count, default=0, help="as of this revision")
    verb.add_argument("--order", type=str.upper, choices=sorted(SORT_ORDERS), help="order of the results")
    verb.add_argument("--sort-by", type=str.upper, choices=sorted(SORT_TARGETS), help="what to order by")
    verb.add_argument("--keys-only", action="store_true", help="no values")
    verb.add_argument("--count-only", action="store_true", help="how many there are, and nothing else")
    verb.add_argument("--print-value-only", action="store_true", help="no keys")
    for bound in REVISION_BOUNDS:
        verb.add_argument(f"--{bound}-rev", type=count, default=0, help="leave out keys of other revisions")
    verb.add_argument(
        "--consistency",
        choices=sorted(CONSISTENCIES),
        default="l",
        help="l: linearizable (the default); s: serializable, what the asked member has, possibly stale",
    )

    verb = add("del", delete, "delete a key or a range")
    add_range_arguments(verb)
    verb.add_argument("--prev-kv", action="store_true", help="print what was deleted")

    verb = add("txn", txn, "do a transaction that stands on standard input")
    verb.epilog, verb.formatter_class = TXN_HELP, RawFormatter

    verb = add("watch", watch, "print changes as they happen")
    add_range_arguments(verb)
    verb.add_argument("--rev", type=count, default=0, help="from this revision on (1: all history)")
    verb.add_argument("--prev-kv", action="store_true", help="print what stood there before, too")


def add_member_verbs(add: Add) -> None:
    """Add serve, recover and rebuild."""
    verb = add("serve", serve, "run a member")
    verb.add_argument("--name", default="default", help="this member's name (default)")
    verb.add_argument("--data-dir", type=directory, help="where its log lives, for ever (NAME.pyraftkv)")
    verb.add_argument("--listen", help=f"host:port (its own address in --members, or {DEFAULT_ADDRESS})")
    verb.add_argument("--advertise", help="host:port that the others dial (its own address in --members)")
    verb.add_argument("--members", help="the first members, a=host:port,b=host:port (itself alone)")
    verb.add_argument("--join", help="members of a cluster that runs, host:port,host:port: be taken in there")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--learner", action="store_true", help="with --join: stay a learner, which never votes")
    kind.add_argument("--witness", action="store_true", help="vote, keep what not everybody has, and serve no keys")
    verb.add_argument("--insecure", action="store_true", help="listen beyond this machine without TLS")
    setting = verb.add_argument("--set", dest="assignments", metavar="NAME=VALUE", type=assignment, action="append")
    setting.help = "what a new cluster is set to (see `settings`); of no effect on one that runs"
    verb.add_argument("--strict-tail", action="store_true", help="refuse a log whose end may be a crash's work, or rot")

    verb = add("recover", recover, "after a quorum was lost for good: make one member the first of a new cluster")
    verb.add_argument("data_dir", metavar="DIR", help="the directory of one member that is left, and does not run")
    verb.add_argument("--force-new-cluster", action="store_true", help="say it: what comes out is another cluster")
    verb.add_argument("--name", help="what the member is called from now on (as before)")
    verb.add_argument("--advertise", "--address", help="host:port where it is reached from now on (as before)")
    verb.add_argument("--from-learner", action="store_true", help="accept a member that did not vote")
    verb.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    verb.add_argument("--yes", action="store_true", help="do not ask")

    verb = add("rebuild", rebuild, "a member's directory is damaged: let it come back with what the others have")
    verb.add_argument("data_dir", metavar="DIR", help="its directory, which is set aside")
    verb.add_argument("--join", required=True, help="other members of its cluster, host:port,host:port")
    verb.add_argument("--name", help="what it is called, if neither the directory nor the cluster can tell")
    verb.add_argument("--listen", help="host:port (where it is reached)")
    verb.add_argument("--advertise", "--address", help="host:port where it is reached from now on (as before)")
    verb.add_argument("--insecure", action="store_true", help="listen beyond this machine without TLS")


def add_demo_verb(add: Add) -> None:
    """Add demo."""
    verb = add("demo", demo, "kill a leader under load, then everybody; count what was lost")
    verb.add_argument("path", metavar="PATH", nargs="?", help="a directory tree to load (Python's standard library)")
    verb.add_argument("--seconds", type=seconds, default=5.0, help="load before the kill, and again after it (5s)")
    verb.add_argument(
        "--data-dir", type=directory, help="where the three members keep their data (a temporary directory)"
    )
    verb.add_argument("--keep", action="store_true", help="leave the data directories there")


def add_membership_verbs(add: Add) -> None:
    """Add what stands behind ``member``."""
    add("list", member_list, "who the members are")

    verb = add("add", member_add, "take in a member, and print how to start it")
    verb.add_argument("name", metavar="NAME", help="what it is to be called")
    verb.add_argument("address", metavar="HOST:PORT", help="what the others dial")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--learner", action="store_true", help="let it stay a learner; otherwise it asks for a vote")
    kind.add_argument("--witness", action="store_true", help="let it be a witness, which votes and serves no keys")

    verb = add("replace", member_replace, "take out a member whose disk is gone, and take in another, in one step")
    add_member_argument(verb)
    verb.add_argument("--name", help="what the new one is called (as the old one)")
    verb.add_argument("--address", help="host:port that the others dial (as the old one)")

    verb = add("remove", member_remove, "take out a member, for ever")
    add_member_argument(verb)
    verb.add_argument("--force", action="store_true", help="even if too few active voters are left to decide anything")

    add_member_argument(add("promote", member_promote, "let a learner vote"))
    add_member_argument(add("demote", member_demote, "make a voter a learner"))

    verb = add("update", member_update, "say something else of a member")
    add_member_argument(verb)
    verb.add_argument("--name", help="what it is called from now on")
    verb.add_argument("--address", help="host:port that the others dial")
    verb.add_argument("--priority", type=count, help="how much it is preferred as leader")


def add_lease_verbs(add: Add) -> None:
    """Add what stands behind ``lease``."""
    add("grant", lease_grant, "grant a lease").add_argument("ttl", metavar="TTL", type=int, help="seconds")
    named = {
        "revoke": add("revoke", lease_revoke, "end a lease, and delete its keys"),
        "keep-alive": add("keep-alive", lease_keep_alive, "renew a lease until it is gone"),
        "timetolive": add("timetolive", lease_time_to_live, "what is left of a lease"),
    }
    for verb in named.values():
        verb.add_argument("lease", metavar="ID", type=lease_id, help="of the lease, hexadecimal")
    named["keep-alive"].add_argument("--once", action="store_true", help="renew it once")
    named["timetolive"].add_argument("--keys", action="store_true", help="and what hangs on it")
    add("list", lease_list, "which leases there are")


def add_holding_verbs(add: Add) -> None:
    """Add lock and elect."""
    verb = add("lock", lock, "hold a lock while a command runs, or until interrupted")
    add_contest_arguments(verb)
    verb.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, with its arguments")

    verb = add("elect", elect, "lead until interrupted, or print who leads")
    add_contest_arguments(verb)
    verb.add_argument(
        "proposal", metavar="PROPOSAL", nargs="?", default="", help="what the others are told of this leader"
    )
    verb.add_argument("-l", "--listen", action="store_true", help="print who leads, and whoever leads next")


def add_contest_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a lock and an election take."""
    parser.add_argument("name", metavar="NAME", help="of it; without '//', and not ending in '/'")
    parser.add_argument("--ttl", type=seconds, default=TTL_DEFAULT, help=f"how long it outlives us ({TTL_DEFAULT:g}s)")
    parser.add_argument("--wait", type=seconds, help="the longest wait for whoever holds it (as long as it takes)")


def add_endpoint_verbs(add: Add) -> None:
    """Add what stands behind ``endpoint``."""
    add("status", endpoint_status, "one line per endpoint: role, term, indexes, lag")
    add("health", endpoint_health, "whether a quorum answers through each endpoint")
    verb = add("hashkv", endpoint_hashkv, "a hash of each endpoint's history, to be compared")
    verb.add_argument("--rev", type=int, default=0, metavar="REVISION", help="up to this revision; each one's latest")


def add_load_verbs(add: Add, check: Add) -> None:
    """Add bench, and what stands behind ``check``."""
    verb = check("perf", check_perf, "put at a rate for a while: PASS or FAIL")
    verb.add_argument("--load", choices=LOADS, default="s", help="150, 1000, 8000 or 15000 puts per second (s)")
    verb.add_argument("--seconds", type=seconds, default=60.0, help="how long (60s)")
    verb.add_argument("--prefix", default="pyraftkv-check-perf/", help="of its keys, which are deleted at the end")

    verb = add("bench", bench, "how many operations a second, and how long they take")
    verb.add_argument("what", choices=["put", "get", "lock"], nargs="?", default="put", help="what to do (put)")
    verb.add_argument("--seconds", type=seconds, default=5.0, help="how long (5s)")
    verb.add_argument("--in-flight", type=positive, default=64, help="operations under way at the same time (64)")
    verb.add_argument("--clients", type=positive, default=CLIENTS_MAX, help=f"connections, at the most ({CLIENTS_MAX})")
    verb.add_argument("--value-bytes", type=count, default=256, help="of a value (256)")
    verb.add_argument("--prefix", default="pyraftkv-bench/", help="of its keys, which are deleted at the end")


def add_top_verb(add: Add) -> None:
    """Add top."""
    verb = add("top", show_top, "every endpoint in one table, asked again and again")
    verb.add_argument("--every", type=seconds, default=2.0, help="how often (2s)")
    verb.add_argument("--count", type=count, default=0, help="how often in all; 0: until interrupted")


def add_upkeep_verbs(add: Add, alarm: Add) -> None:
    """Add compaction, settings, and what stands behind ``alarm``."""
    verb = add("compaction", compaction, "forget history before a revision")
    verb.add_argument("revision", metavar="REVISION", type=count, help="nobody can read or watch below it any more")
    verb.add_argument("--physical", action="store_true", help="wait until the member has won back the space")

    alarm("list", alarm_list, "what is wrong, and at which member")
    verb = alarm("disarm", alarm_disarm, "clear alarms; what still is wrong is raised again")
    verb.add_argument("--kind", type=str.upper, choices=sorted(KINDS), help="only these (all)")

    verb = add("settings", settings, "what the cluster is set to, and setting it")
    verb.add_argument("assignments", metavar="NAME=VALUE", type=assignment, nargs="*", help="what to set")
    verb.add_argument("--if-version", type=count, help="set it only if the settings have this version")


def add_member_argument(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    """Add the member that a verb is about."""
    parser.add_argument("member", metavar="MEMBER", type=member_named, nargs=nargs, help="its name or its id")


def add_disk_verbs(add: Add, wal: Add) -> None:
    """Add doctor, and what stands behind ``wal``."""
    verb = wal("verify", wal_verify, "check every record, as a start would: 0 ok, 1 torn tail, 2 corrupt, 3 unusable")
    add_data_dir(verb)
    verb = wal("dump", wal_dump, "print the records, a line for each")
    add_data_dir(verb)
    verb.add_argument("--from", dest="first", type=count, default=0, help="only entries from this index on")
    verb.add_argument("--to", dest="last", type=count, help="only entries up to this index")
    verb.add_argument("--entries", action="store_true", help="decode the entries: what they do, and to which keys")
    verb.add_argument("--values", action="store_true", help="the values, too")

    verb = add("doctor", doctor, "what is wrong in a member's directory, where, and what to do")
    add_data_dir(verb)


def add_snapshot_verbs(add: Add) -> None:
    """Add what stands behind ``snapshot``."""
    verb = add("save", snapshot_save, "save everything, as of one revision, to a file")
    verb.add_argument("file", metavar="FILE", help="where to; one that is there is replaced at the end, in one step")
    verb.add_argument(
        "--consistency",
        choices=sorted(CONSISTENCIES),
        default="l",
        help="l: all that was acknowledged (the default); s: what the asked member has, which needs no quorum",
    )

    verb = add("status", snapshot_status, "check a file, and say what it holds")
    verb.add_argument("file", metavar="FILE", help="what `snapshot save` made")

    verb = add("restore", snapshot_restore, "make one member's directory of a new cluster that begins with the data")
    verb.add_argument("file", metavar="FILE", help="what `snapshot save` made")
    verb.add_argument("--name", default="default", help="whose directory it is (default)")
    verb.add_argument("--data-dir", type=directory, help="made; must be empty if it is there (NAME.pyraftkv)")
    verb.add_argument("--members", help="all members of the new cluster, a=host:port,b=host:port (itself alone)")
    verb.add_argument(
        "--bump-revision",
        type=count,
        default=BUMP_REVISION,
        help=f"revisions to pass over, so that no watch goes on over other changes ({BUMP_REVISION}); 0: keep history",
    )
    verb.add_argument("--token", default="", help="tells clusters apart that are restored from one file")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the directory that a verb looks at."""
    parser.add_argument("data_dir", metavar="DIR", help="a member's directory; it may be running")


def add_simulator_verb(add: Add) -> None:
    """Add sim."""
    verb = add("sim", sim, "run a whole cluster in virtual time, under every fault; replay a failure by its seed")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=count, help="the one to run")
    which.add_argument("--kinds", action="store_true", help="run nothing: list the kinds of faults")
    which.add_argument("--seeds", type=seeds, help="A..B: all of these, both included, and a table")
    verb.add_argument("--seconds", type=seconds, help="how long a run is, in virtual time (30s)")
    verb.add_argument("--members", type=count, help="how many members, in place of the seed's choice")
    verb.add_argument("--script", metavar="FILE", help="the faults to strike, in place of the seed's choice")
    verb.add_argument("--html", metavar="FILE", help="write a space-time diagram as a page for a browser")
    verb.add_argument("--svg", metavar="FILE", help="write it as a still picture")
    verb.add_argument("--trace", metavar="FILE", help="write every event, a line for each")
    verb.add_argument("--shrink", action="store_true", help="of a failure, find the few faults that matter")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="pyraftkv",
        description="etcd inside your Python process: run a member, read and write keys, ask members how they are.",
        epilog="Exit status: 0 done, 1 not applied, 2 wrong usage, 3 outcome unknown, 70 storage.",
    )
    top.add_argument("--version", action="version", version=f"pyraftkv {pyraftkv.__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    add_globals(top, again=False)

    def add_to(parent: Any) -> Add:
        def add(name: str, run: Run, text: str) -> argparse.ArgumentParser:
            made: argparse.ArgumentParser = parent.add_parser(name, help=text, description=run.__doc__)
            made.set_defaults(run=run)
            add_globals(made, again=True)
            return made

        return add

    def family(name: str, text: str) -> Add:
        made = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        return add_to(made.add_subparsers(title="verbs", metavar="VERB", required=True))

    add = add_to(verbs)
    add_key_verbs(add)
    add_lease_verbs(family("lease", "keys that vanish with their owner"))
    add_holding_verbs(add)
    add_endpoint_verbs(family("endpoint", "ask members how they are"))
    add_top_verb(add)
    add_membership_verbs(family("member", "who the members are, and changing it"))
    verb = add("move-leader", move_leader, "hand leadership over, to MEMBER or to the best one")
    add_member_argument(verb, nargs="?")
    add_upkeep_verbs(add, family("alarm", "what is wrong"))
    add_snapshot_verbs(family("snapshot", "save everything, and begin a new cluster with it"))
    add_member_verbs(add)
    add_disk_verbs(add, family("wal", "a member's log on disk"))
    add_load_verbs(add, family("check", "whether a cluster is fast enough"))
    add_demo_verb(add)
    add_simulator_verb(add)
    add("version", version, "print the version")
    return top


Run = Callable[[argparse.Namespace], Coroutine[Any, Any, int] | int]
"""A verb: takes the parsed arguments, returns the exit status; one that needs an event loop is a coroutine."""
