"""What a member says of itself and of its cluster when it is asked how it is."""

from __future__ import annotations

from pyraftkv import core
from pyraftkv._version import __version__
from pyraftkv.core import FOLLOWER
from pyraftkv.kv import PeerStatus, Status
from pyraftkv.node.member import Member
from pyraftkv.node.peers import Peers
from pyraftkv.protocol import Hello


def status_of(member: Member, *, hello: Hello, storage: str, alarms: list[str]) -> Status:
    """Return a member's view of itself and of the cluster.

    Args:
        member: Its running parts.
        hello: Who it is.
        storage: The kind of its storage.
        alarms: What is wrong with this member alone.
    """
    raft, store, rules = member.raft.status(), member.replica.store, member.replica.rules
    peers = member.peers
    return Status(
        name=hello.name,
        member_id=hello.member_id,
        cluster_id=hello.cluster_id,
        role=_role_name(raft),
        leader=raft.leader,
        leader_name=peers.name(raft.leader),
        term=raft.term,
        commit_index=raft.commit,
        applied_index=member.replica.applied_index,
        last_index=raft.last_index,
        saved_index=raft.saved,
        revision=store.published_revision,
        compact_revision=store.compact_revision,
        db_size_bytes=store.size_bytes,
        keys=store.key_count,
        has_quorum=raft.has_quorum,
        storage=storage,
        version=__version__,
        peers=_peer_statuses(raft, peers),
        alarms=[alarm.text for alarm in rules.alarms] + alarms,
        db_in_use_bytes=store.in_use_bytes,
        slow_saves=member.disk.slow_saves,
        quota_bytes=rules.settings.quota_bytes_max or 0,
        machines_size_bytes=member.replica.machines.size_bytes,
    )


def _peer_statuses(raft: core.Status, peers: Peers) -> list[PeerStatus]:
    statuses: list[PeerStatus] = []
    for id_ in peers.ids:
        seen = raft.peers.get(id_)
        statuses.append(
            PeerStatus(
                id=id_,
                name=peers.name(id_),
                address=peers.address(id_),
                connected=peers.is_connected(id_),
                match=seen.match if seen else 0,
                state=seen.state.name.lower() if seen else "",
            )
        )
    return statuses


def _role_name(raft: core.Status) -> str:
    """Return what a member is, for people."""
    if raft.role is FOLLOWER and raft.id in raft.membership.witnesses:
        return "witness"
    is_learner = raft.role is FOLLOWER and not raft.membership.is_voter(raft.id)
    return "learner" if is_learner else raft.role.name.lower().replace("_", "-")
