"""What the command does about leases, printed as etcdctl does."""

from __future__ import annotations

import json

import pytest

from pyraftkv.cli.common import DONE, NOT_APPLIED, USAGE
from tests.test_cli import Cli
from tests.test_cli_upkeep import Run, cli, member  # noqa: F401 - fixtures


def test_a_lease_from_its_grant_to_its_end(cli: Cli, member: tuple[str, Run]) -> None:  # noqa: F811
    """Ids are 16 hexadecimal digits, here and there; what is gone says so."""
    assert cli("lease", "list") == (DONE, "found 0 leases\n", "")
    status, text, _ = cli("lease", "grant", "60")
    lease = text.split()[1]
    assert (status, text) == (DONE, f"lease {lease} granted with TTL(60s)\n")
    assert len(lease) == 16
    assert cli("put", "--lease", lease, "k", "v")[0] == DONE
    assert cli("lease", "list") == (DONE, f"found 1 leases\n{lease}\n", "")
    assert cli("lease", "keep-alive", "--once", lease) == (DONE, f"lease {lease} keepalived with TTL(60)\n", "")
    status, text, _ = cli("lease", "timetolive", "--keys", lease)
    assert text.startswith(f"lease {lease} granted with TTL(60s), remaining(5")
    assert text.endswith("s), attached keys([k])\n")
    assert cli("lease", "revoke", lease) == (DONE, f"lease {lease} revoked\n", "")
    assert cli("get", "k") == (DONE, "", "")
    assert cli("lease", "timetolive", lease) == (DONE, f"lease {lease} already expired\n", "")
    assert cli("lease", "keep-alive", lease) == (NOT_APPLIED, f"lease {lease} expired or revoked.\n", "")
    assert cli("lease", "revoke", lease)[0] == NOT_APPLIED
    assert cli("put", "--lease", lease, "k", "v")[0] == NOT_APPLIED


def test_leases_as_json(cli: Cli, member: tuple[str, Run]) -> None:  # noqa: F811
    """Numbers are decimal there, as etcd's are."""
    granted = json.loads(cli("lease", "grant", "1", "-w", "json")[1])
    assert granted["TTL"] == 2
    lease = f"{granted['ID']:x}"
    assert json.loads(cli("lease", "keep-alive", "--once", lease, "-w", "json")[1]) == {"ID": granted["ID"], "TTL": 2}
    assert json.loads(cli("lease", "list", "-w", "json")[1]) == {"leases": [{"ID": granted["ID"]}]}
    info = json.loads(cli("lease", "timetolive", "--keys", lease, "-w", "json")[1])
    assert (info["grantedTTL"], info["keys"]) == (2, [])
    assert "revision" in json.loads(cli("lease", "revoke", lease, "-w", "json")[1])["header"]
    with pytest.raises(SystemExit) as refused:
        cli("lease", "revoke", "no number")
    assert refused.value.code == USAGE
