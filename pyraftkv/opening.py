"""The short forms: `open` a node, `connect` to a cluster, `rebuild` a member, `recover` when a quorum is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyraftkv import errors
from pyraftkv.backup import BUMP_REVISION, Restored, restore
from pyraftkv.client import Client
from pyraftkv.core.membership import DATA_VOTERS_MIN
from pyraftkv.log import FileStorage
from pyraftkv.node import Node, NodeConfig
from pyraftkv.node.aside import drop_note
from pyraftkv.node.rebuilding import Rebuilding, Rebuilt, run_until_level
from pyraftkv.node.recovery import Agree, Recovery, agreed
from pyraftkv.node.recovery import recover as recover_storage
from pyraftkv.roster import complaint_of_name
from pyraftkv.statemachine import Factories
from pyraftkv.transport import TLS, MemoryNetwork, MemoryTransport, TcpDialer, TcpTransport, Transport
from pyraftkv.transport.address import parse_address

logger = logging.getLogger("pyraftkv.node")

DEFAULT_NAME = "default"
"""What a node is called that names itself nothing, as in etcd."""


def open(  # noqa: A001  (pyraftkv.open, as one opens a file)
    data_dir: str | Path,
    *,
    name: str = DEFAULT_NAME,
    listen: str | None = None,
    advertise: str | None = None,
    members: Mapping[str, str] | str | None = None,
    join: str | Iterable[str] | None = None,
    learner: bool = False,
    witness: bool = False,
    machines: Factories | None = None,
    tls: TLS | None = None,
    insecure: bool = False,
    strict_tail: bool = False,
    config: NodeConfig | None = None,
) -> Node:
    """Return a node with its log in ``data_dir``: enter it with ``async with`` to run it.

    ``open(path)`` alone is a durable cluster of one.

    Args:
        data_dir: Made if it does not exist; belongs to this member for ever.
        name: This member's name.
        listen: ``host:port`` to listen on; without it nobody else can reach the node. Port 0 takes a free one.
        advertise: ``host:port`` that the others dial, where it differs from ``listen``.
        members: Names and addresses of the cluster's first members, as a mapping or as ``"a=host:port,b=host:port"``.
        join: Members of a cluster that runs, as a list or as ``"host:port,host:port"``: be taken in there, as a learner
            that votes once it has caught up. Nobody is asked any more once the directory belongs to a cluster. This
            member's own address among them is left out.
        learner: With ``join``: stay a learner, which receives everything and never votes.
        witness: Be the cluster's witness: vote, keep what not everybody has, and serve no keys. Beside two members or
            more that have the data, with ``members`` or with ``join``; for life.
        machines: State machines beside the store, by name: what makes each of them. The same on all members.
        tls: Certificates for members and clients.
        insecure: Allow an address that other machines can reach without TLS.
        strict_tail: Refuse to start from a log whose end may be what a crash has left, and may be rot as well: for a
            cluster of one, where nobody else could send it again.
        config: Timing and limits.

    Raises:
        ConfigurationError: Names or addresses that cannot work.
    """
    _check_kinds(name, tls, config)
    table = _table(members)
    addresses = [address for address in _addresses(join or ()) if address not in (listen, advertise)]
    if join is not None and not addresses:
        raise errors.ConfigurationError(f"join={join!r} names no other member: nobody is there to be asked")
    _check_beginning(table, addresses, listens=listen is not None)
    _check_kind(table, addresses, witness=witness, learner=learner)
    return Node(
        name,
        members=table if table or addresses else {name: advertise or listen or name},
        storage=FileStorage(data_dir, strict_tail=strict_tail),
        transport=_transport(name, listen, advertise=advertise, tls=tls, insecure=insecure),
        join=addresses,
        learner=learner,
        witness=witness,
        machines=machines,
        config=config,
    )


def _transport(name: str, listen: str | None, *, advertise: str | None, tls: TLS | None, insecure: bool) -> Transport:
    if listen is None:
        return _Unheard(MemoryNetwork(), name)
    return TcpTransport(listen=listen, advertise=advertise, tls=tls, insecure=insecure)


class _Unheard(MemoryTransport):
    """The transport of a member without an address, whose directory may tell later that there are others."""

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Say that nobody can be reached, if there is anybody."""
        super().set_peers(peers)
        if self._addresses:
            logger.warning(
                "%s: its cluster has other members, at %s, and it neither hears nor reaches them: open it with listen=",
                self.address,
                ", ".join(sorted(self._addresses.values())),
            )


def _check_kinds(name: str, tls: TLS | None, config: NodeConfig | None = None) -> None:
    """Refuse what would be noticed at the first connection only. Raises `ConfigurationError`."""
    _check_name(name)
    if tls is not None and not isinstance(tls, TLS):
        raise errors.ConfigurationError(f"tls= is a pyraftkv.TLS, not {tls!r}")
    if config is not None and not isinstance(config, NodeConfig):
        raise errors.ConfigurationError(f"config= is a pyraftkv.NodeConfig, not {config!r}")


def _check_beginning(members: Mapping[str, str], join: list[str], *, listens: bool) -> None:
    """Refuse a cluster that is both begun and entered, or by who cannot be reached. Raises `ConfigurationError`."""
    if not listens and (len(members) > 1 or join):
        raise errors.ConfigurationError("listen= is needed to talk to other members")
    if members and join:
        raise errors.ConfigurationError("members= begins a cluster and join= enters one: give one of the two")


def _check_kind(members: Mapping[str, str], join: list[str], *, witness: bool, learner: bool) -> None:
    """Refuse a witness or a learner that could be of no use. Raises `ConfigurationError`."""
    if learner and not join:
        raise errors.ConfigurationError("learner=True needs join=: the first members of a cluster vote")
    if witness and (learner or not (join or len(members) > DATA_VOTERS_MIN)):
        raise errors.ConfigurationError("witness=True needs two members with the data beside it, and is no learner")


def connect(
    addresses: str | Iterable[str],
    *,
    tls: TLS | None = None,
    timeout: float = 5.0,
    name: str = "client",
    discover: bool = True,
) -> Client:
    """Return a client for the cluster at ``"host:port,host:port"``: enter it with ``async with`` to connect.

    Args:
        addresses: Members to try, separated by commas or as a list; one that answers is enough.
        tls: The client's certificates.
        timeout: The deadline in seconds of a call that names none.
        name: What the members call this client in their logs.
        discover: Whether to go to members that only another member has named: a cluster may move on, member by member.

    Raises:
        ConfigurationError: An address that cannot work.
    """
    _check_kinds("client", tls)
    if not isinstance(name, str):
        raise errors.ConfigurationError(f"name= is text, not {name!r}")
    return Client(_addresses(addresses), dialer=TcpDialer(tls=tls), name=name, timeout=timeout, discover=discover)


async def recover(
    data_dir: str | Path,
    *,
    name: str | None = None,
    advertise: str | None = None,
    from_learner: bool = False,
    agree: Agree = agreed,
) -> Recovery:
    """Make the member in ``data_dir``, which does not run, the first and only member of a new cluster.

    For when a quorum is lost for good (docs/operations.md). Every key, revision and session that this member has is
    kept; what only the lost members had is lost. The others can never take part again: wipe them, and let them join.
    It can be interrupted anywhere: the directory is then what it was, or is the new cluster's, and the same call, or
    a start of the member, goes on from there.

    Args:
        data_dir: Of one member that is left; of several, of the one whose last entry has the highest term and, among
            equals, the longest log.
        name: What the member is called from now on; as before when None.
        advertise: ``host:port`` where it is reached from now on; as before when None.
        from_learner: Accept a member that did not vote, and may lack more than a voter.
        agree: Is shown what is about to be done, and returns whether to do it; by default it is done.

    Returns: What was done; its ``is_done`` is False if ``agree`` declined, and nothing has changed then.

    Raises:
        DataDirLocked: The member runs.
        StorageError: The directory is damaged, empty, or of a member that cannot be recovered.
        ConfigurationError: A name or an address that cannot work.
    """
    if name is not None:
        _check_name(name)
    if advertise is not None:
        parse_address(advertise)
    storage = FileStorage(data_dir, create=False)
    return await recover_storage(storage, name=name, address=advertise, from_learner=from_learner, agree=agree)


async def rebuild(
    data_dir: str | Path,
    *,
    join: str | Iterable[str],
    name: str | None = None,
    listen: str | None = None,
    advertise: str | None = None,
    tls: TLS | None = None,
    insecure: bool = False,
    config: NodeConfig | None = None,
) -> Rebuilt:
    """Let the member in ``data_dir``, which does not run and perhaps cannot, come back with what the others have.

    For a directory that is refused as damaged (docs/operations.md). The member is taken out for ever, and comes back as
    a new one of its name and address: it learns everything, votes as before, and is stopped again. Its old directory
    is set aside beside the new one. It can be interrupted anywhere: the same call goes on from there.

    Args:
        data_dir: The damaged directory; it may be gone.
        join: Other members of its cluster, as a list or as ``"host:port,host:port"``.
        name: What the member is called, if neither the directory nor the cluster can tell who it was.
        listen: ``host:port`` to listen on while it learns; where it is reached when None.
        advertise: ``host:port`` where it is reached from now on; as before when None.
        tls: Certificates for members and clients.
        insecure: Allow an address that other machines can reach without TLS.
        config: Timing and limits.

    Raises:
        DataDirLocked: The member runs.
        ForeignDataDir: The directory belongs to another cluster.
        MemberNotFound: The directory does not say whose it is, or the cluster does not know that member, and no name
            was given.
        QuorumAtRisk: Too few would be left to decide anything.
        Unavailable: No majority answers. Nothing has happened; the quorum may be lost (`recover`).
        ConfigurationError: Names or addresses that cannot work, or a path that is no directory's.
    """
    if name is not None:
        _check_name(name)
    for address in (listen, advertise):
        if address is not None:
            parse_address(address)
    addresses = _addresses(join)
    rebuilding = Rebuilding(data_dir, name=name, join=addresses, dialer=TcpDialer(tls=tls))
    done = await rebuilding.replace(advertise)
    member = done.member
    node = open(
        data_dir,
        name=member.name,
        listen=listen or member.address,
        advertise=member.address,
        join=addresses,
        learner=not done.votes,
        tls=tls,
        insecure=insecure,
        config=config,
    )
    await run_until_level(node, votes=done.votes)
    await asyncio.to_thread(drop_note, data_dir)
    return done


async def restore_snapshot(
    file: str | Path,
    data_dir: str | Path,
    *,
    name: str = DEFAULT_NAME,
    members: Mapping[str, str] | str | None = None,
    bump_revision: int = BUMP_REVISION,
    token: str = "",
) -> Restored:
    """Make the directory of one member of a new cluster that begins with the data of a saved snapshot.

    Each machine restores its own member, from a copy of the same file and with the same ``members``; they find each
    other when they are started (docs/operations.md). Keys and their leases' ids are kept, sessions are not; history is
    not, unless nothing is bumped. Interrupted, it leaves nothing at the place.

    Args:
        file: What `Node.snapshot` or `Client.snapshot` saved; a member's own ``snap/*.snap`` will do as well.
        data_dir: Made; if it is there it must be empty.
        name: Whose directory it is.
        members: Names and addresses of all members of the new cluster, as for `open`; without them ``name`` is alone.
        bump_revision: How many revisions are passed over, so that none of the old cluster comes again with other
            changes: a watch from there is `WatchCancelled` as compacted. 0 keeps revisions and history.
        token: Tells clusters apart that are restored from the same file for the same members.

    Raises:
        SnapshotCorruption: The file is damaged; says where.
        StorageError: It cannot be read, or the directory is not empty.
        ConfigurationError: Names or addresses that cannot work.
    """
    table = _table(members)
    _check_name(name)
    return await restore(
        file, data_dir, name=name, members=table or {name: name}, bump_revision=bump_revision, token=token
    )


def parse_members(text: str) -> dict[str, str]:
    """Parse ``"a=host:port,b=host:port"``. Raises `ConfigurationError`."""
    table: dict[str, str] = {}
    for part in text.split(","):
        name, separator, address = part.strip().partition("=")
        if not (name and separator and address):
            raise errors.ConfigurationError(f"members are written name=host:port, not {part!r}")
        if name in table:
            raise errors.ConfigurationError(f"two members are called {name!r}")
        table[name] = address
    return _checked(table)


def _table(members: Mapping[str, str] | str | None) -> dict[str, str]:
    """Return members that were given as a mapping or in words. Raises `ConfigurationError`."""
    if isinstance(members, str):
        return parse_members(members)
    if members is not None and not isinstance(members, Mapping):
        raise errors.ConfigurationError(f"members= are names and addresses, {{'a': 'host:port'}}: not {members!r}")
    return _checked(members or {})


def _addresses(given: str | Iterable[str]) -> list[str]:
    """Return addresses that were given as a list, or with commas between them. Raises `ConfigurationError`."""
    listed = given.split(",") if isinstance(given, str) else given
    if not isinstance(listed, Iterable):
        raise errors.ConfigurationError(f"addresses are 'host:port,host:port', or a list of them: not {given!r}")
    addresses = [address.strip() if isinstance(address, str) else address for address in listed]
    named = [address for address in addresses if address != ""]
    for address in named:
        parse_address(address)
    return named


def _checked(members: Mapping[str, str]) -> dict[str, str]:
    """Return the table, if every member has a name and an address of its own. Raises `ConfigurationError`."""
    table = dict(members)
    owners: dict[str, str] = {}
    for name, address in table.items():
        _check_name(name)
        parse_address(address)
        other = owners.setdefault(address, name)
        if other != name:
            raise errors.ConfigurationError(f"{other!r} and {name!r} have the same address, {address}")
    return table


def _check_name(name: str) -> None:
    """Refuse a name that could not stand in a list of members. Raises `ConfigurationError`."""
    complaint = complaint_of_name(name)
    if complaint:
        raise errors.ConfigurationError(complaint)
