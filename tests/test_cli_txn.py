"""The command line of transactions: what is read, what is printed, and what is no transaction."""

from __future__ import annotations

import io
import json

import pytest

from pyraftkv.cli.common import DONE, USAGE
from pyraftkv.cli.transactions import transaction_of
from pyraftkv.errors import InvalidRequest
from pyraftkv.store.commands import Compare, CompareResult, CompareTarget, DeleteRange, PutKey, RangeQuery
from tests.test_cli import Cli, address, cli, fresh  # noqa: F401

TAKE = """\
mod("owner") = "0"

put owner "ann and bob"
get owner

get owner
del owner
"""


def ask(run: Cli, monkeypatch: pytest.MonkeyPatch, text: str, *options: str) -> tuple[int, str, str]:
    """Run ``txn`` with a text on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return run("txn", *options)


def test_a_transaction_does_one_thing_or_the_other(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """As in etcdctl: whether the comparisons held, and then each answer behind an empty line."""
    assert ask(fresh, monkeypatch, TAKE) == (DONE, "SUCCESS\n\nOK\n\nowner\nann and bob\n", "")
    assert ask(fresh, monkeypatch, TAKE) == (DONE, "FAILURE\n\nowner\nann and bob\n\n1\n", "")
    table = json.loads(ask(fresh, monkeypatch, TAKE, "-w", "json")[1])
    assert table["succeeded"]
    assert table["responses"][0] == {"response_put": {}}
    assert table["responses"][1]["response_range"]["count"] == 1
    table = json.loads(ask(fresh, monkeypatch, TAKE, "-w", "json")[1])
    assert table["responses"][1] == {"response_delete_range": {"deleted": 1}}


def test_every_comparison_and_operation_is_read() -> None:
    """By etcdctl's names, long and short; an id of a lease is hexadecimal, as everywhere."""
    text = 'val("a")!="x"\nver(b) > 1\nc("c") < "2"\nlease("d") = "1f"\n\nget a b\ndel a b\n\nput "" ""'
    txn = transaction_of(text)
    assert txn.compares == [
        Compare(CompareTarget.VALUE, CompareResult.NOT_EQUAL, b"a", b"x"),
        Compare(CompareTarget.VERSION, CompareResult.GREATER, b"b", 1),
        Compare(CompareTarget.CREATE, CompareResult.LESS, b"c", 2),
        Compare(CompareTarget.LEASE, CompareResult.EQUAL, b"d", 0x1F),
    ]
    assert txn.success == [RangeQuery(b"a", b"b"), DeleteRange(b"a", b"b")]
    assert txn.failure == [PutKey(b"", b"")]
    assert transaction_of("").compares == []
    assert transaction_of("\nput a b").success == [PutKey(b"a", b"b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "no comparison"),
        ('size("a") = "1"', "no comparison"),
        ('mod("a") = "x"', "no whole number"),
        ('value("a b" c) = "x"', "quote what has spaces"),
        ("\nput a", "has 1 words"),
        ("\nput 'a b", "No closing quotation"),
        ("\nmove a b", "no operation"),
        ("\n\n\nput a b", "three parts"),
    ],
)
def test_what_is_no_transaction_is_refused(text: str, words: str) -> None:
    """It is told what would be one."""
    with pytest.raises(InvalidRequest, match=words):
        transaction_of(text)


def test_a_transaction_that_cannot_be_read_is_usage(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """One line, and nothing was asked."""
    status, out, err = ask(fresh, monkeypatch, "hello")
    assert (status, out, err.count("\n")) == (USAGE, "", 1)
