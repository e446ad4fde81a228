"""One line per message, entry and `Ready`, for traces and transcripts. Never for machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import Ready, Save
from pyraftkv.core.types import NORMAL, Entry, Membership, SnapshotMeta

PAYLOAD_BYTES_MAX = 24
"""How much of a payload is shown."""


def describe_entry(entry: Entry) -> str:
    """Return an entry as ``index@term payload``, the payload cut to `PAYLOAD_BYTES_MAX`."""
    shown = repr(entry.payload[:PAYLOAD_BYTES_MAX])[1:]
    if len(entry.payload) > PAYLOAD_BYTES_MAX:
        shown += f"... ({len(entry.payload)} bytes)"
    kind = "" if entry.kind is NORMAL else f" {entry.kind.name}"
    return f"{entry.index}@{entry.term}{kind} {shown}"


def describe_message(message: Message) -> str:
    """Return a message as ``sender->to Name term=... ...``."""
    detail = _DETAILS.get(type(message))
    text = f"{message.sender}->{message.to} {type(message).__name__} term={message.term}"
    return f"{text} {detail(message)}" if detail is not None else text


def describe_ready(ready: Ready) -> str:
    """Return a `Ready`, one line per thing that it asks for; "nothing" when it asks for none."""
    lines: list[str] = []
    if ready.soft_state is not None:
        soft = ready.soft_state
        lines.append(f"now {soft.role.name} leader={soft.leader} term={soft.term}")
    lines += [f"send {describe_message(message)}" for message in ready.messages]
    if ready.save is not None:
        lines.append(_describe_save(ready.save))
    lines += [
        f"after save {ready.after_save} send {describe_message(message)}" for message in ready.messages_after_save
    ]
    if ready.restore is not None:
        lines.append(f"restore {_describe_snapshot(ready.restore)}")
    if ready.committed:
        lines.append(f"apply {_describe_range(ready.committed)}")
    lines += [f"read context={read.context} index={read.index}" for read in ready.reads]
    lines += [f"fetch [{fetch.lo}, {fetch.hi}) bytes_max={fetch.bytes_max}" for fetch in ready.fetches]
    if ready.rejected_proposals:
        lines.append(f"reject {len(ready.rejected_proposals)} proposals")
    if ready.again:
        lines.append("call again")
    return "\n".join(lines) or "nothing"


def describe_membership(membership: Membership) -> str:
    """Return a configuration as ``voters=[...]`` and whatever else of it is not empty."""
    groups = {
        "outgoing": membership.outgoing,
        "learners": membership.learners,
        "learners_next": membership.learners_next,
        "witnesses": membership.witnesses,
    }
    text = f"voters={sorted(membership.voters)}"
    text += "".join(f" {name}={sorted(nodes)}" for name, nodes in groups.items() if nodes)
    return text + (" auto_leave" if membership.auto_leave else "")


def _describe_range(entries: list[Entry]) -> str:
    if not entries:
        return "[]"
    if len(entries) == 1:
        return f"[{describe_entry(entries[0])}]"
    first, last = entries[0], entries[-1]
    return f"[{first.index}@{first.term}..{last.index}@{last.term}]"


def _describe_save(save: Save) -> str:
    parts = [f"save {save.number}"]
    if save.hard_state is not None:
        hard = save.hard_state
        parts.append(f"term={hard.term} vote={hard.vote} commit={hard.commit}")
    if save.snapshot is not None:
        parts.append(_describe_snapshot(save.snapshot))
    if save.entries:
        parts.append(_describe_range(save.entries))
    return " ".join(parts)


def _describe_snapshot(snapshot: SnapshotMeta) -> str:
    return f"snapshot {snapshot.index}@{snapshot.term} {describe_membership(snapshot.membership)}"


def _describe_vote_request(message: VoteRequest) -> str:
    flags = (" pre" if message.pre else "") + (" by_transfer" if message.by_transfer else "")
    return f"last={message.last_index}@{message.last_term}{flags}"


def _describe_vote_response(message: VoteResponse) -> str:
    return ("granted" if message.granted else "refused") + (" pre" if message.pre else "")


def _describe_append_request(message: AppendRequest) -> str:
    entries = _describe_range(message.entries)
    return f"prev={message.prev_index}@{message.prev_term} commit={message.commit} {entries}"


def _describe_append_response(message: AppendResponse) -> str:
    if message.rejected:
        return f"rejected prev={message.index} hint={message.hint_index}@{message.hint_term}"
    hollow = f" hollow={message.hollow_index}" if message.hollow_index else ""
    return f"accepted index={message.index}{hollow}"


def _describe_heartbeat(message: Heartbeat) -> str:
    floor = f" floor={message.floor}" if message.floor else ""
    return f"commit={message.commit} context={message.context}{floor}"


def _describe_context(message: HeartbeatResponse | ReadIndexRequest) -> str:
    return f"context={message.context}"


def _describe_read_index_response(message: ReadIndexResponse) -> str:
    return f"context={message.context} index={message.index}"


def _describe_install_snapshot(message: InstallSnapshot) -> str:
    return _describe_snapshot(message.snapshot)


def _describe_forwarded_proposals(message: ForwardedProposals) -> str:
    return f"payloads={len(message.payloads)}"


def _describe_forwarded_membership(message: ForwardedMembership) -> str:
    return f"payload of {len(message.payload)} bytes" + (" leave" if message.leave else "")


def _describe_commit_notice(message: CommitNotice) -> str:
    return f"committed={message.index}@{message.index_term}"


_DETAILS: dict[type, Callable[[Any], str]] = {
    VoteRequest: _describe_vote_request,
    VoteResponse: _describe_vote_response,
    AppendRequest: _describe_append_request,
    AppendResponse: _describe_append_response,
    Heartbeat: _describe_heartbeat,
    HeartbeatResponse: _describe_context,
    InstallSnapshot: _describe_install_snapshot,
    ReadIndexRequest: _describe_context,
    ReadIndexResponse: _describe_read_index_response,
    ForwardedProposals: _describe_forwarded_proposals,
    ForwardedMembership: _describe_forwarded_membership,
    CommitNotice: _describe_commit_notice,
}
