"""What a node does for calls on machines: which version all members offer, and what is proposed to them."""

from __future__ import annotations

from pyraftkv import codec, errors
from pyraftkv.machines import Machines
from pyraftkv.node.peers import Peers
from pyraftkv.statemachine import MachineQuery, Operate, Operated


def agreed_version(machines: Machines, peers: Peers, name: str) -> int:
    """Return the version at which an operation may be proposed: one that every member knows. O(members).

    What was applied once is known to everybody who goes on applying. Of a member that this one has not heard of yet
    nothing better is known than that.

    Raises: `InvalidRequest` if this member has no such machine; `Unavailable` if another one has not.
    """
    offered = machines.version_of(name)
    if not offered:
        raise errors.InvalidRequest(f"there is no machine {name!r} here")
    version = max(min(offered, peers.machine_version(name)), machines.applied_version(name))
    if not version:
        raise errors.Unavailable(f"a member does not have the machine {name!r} yet: start it with machines=")
    return version


def check_operation(command: Operate, machines: Machines, peers: Peers) -> None:
    """Refuse a new operation that not all members know. Raises `InvalidRequest`, `Unavailable`."""
    version = agreed_version(machines, peers, command.machine)
    if command.version > version:
        raise errors.InvalidRequest(f"{command.machine!r} is at version {version} with some of the members")


def examine_operation(command: Operate, machines: Machines) -> None:
    """Refuse an operation that this very member could not apply: it would stop. Raises `NoState`.

    No more than that, as in `Admission.examine`: it may have been applied already.
    """
    if command.version > machines.version_of(command.machine):
        raise errors.NoState(f"this member has no {command.machine!r} of version {command.version}: ask another one")


def answer(query: MachineQuery, machines: Machines, peers: Peers, *, revision: int) -> Operated:
    """Answer a question as of now. Raises `InvalidRequest`, `OperationRefused`, `Unavailable`."""
    if not query.payload:
        return Operated(revision, codec.encode_plain(agreed_version(machines, peers, query.machine)))
    return Operated(revision, machines.query(query))
