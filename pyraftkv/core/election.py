"""Elections: timeouts, rehearsals, votes (Raft §5.2, §5.4.1; thesis §4.2.3, §9.6).

Two guards keep a member that cannot win from disturbing a leader that works. A *pre-vote* asks whether an election
could be won before the term is raised. The *lease* of CheckQuorum ignores requests while a leader was heard within an
election timeout. A requested transfer passes both.

A member that rejoins with a higher term is not locked out by them: it answers an append or a heartbeat of the lower
term with its own, and the leader steps down for an election that both can take part in.

Where leases are in use (`Config.lease_reads`) a third guard is stricter, for a leader answers reads on the strength of
it: a *promise* given with the answer to a heartbeat holds whatever its giver hears of leaders and terms meanwhile, and
binds its own candidacy too. What the leader itself asks for is not held up by it.

**Between two configurations** somebody must say which is the last one, or nobody may ever win:

1. A leads {A, B}, removes itself, applies that, and leads no more. What it told B of the commit index is lost.
2. B has the change in its log, does not know that it is committed, and so still needs the vote of A.
3. A, whose log goes on behind the change with entries of its own that nobody else has, refuses, and may not stand.

Had B only known, it could have won by itself; and so it is for a majority of the new configuration that does not hear
of it, but for one whose log is too short, while the others are switched off. So a member that refuses a vote or is
refused one, and a member that votes though its own configuration gives it no vote, tells the other end which change it
has applied. Who has that entry, too, has committed it, applies it, and asks for votes by the configuration that it
makes (raft-rs commits by votes for the same reason).
"""

from __future__ import annotations

from pyraftkv.core.leader import LeaderRules
from pyraftkv.core.messages import CommitNotice, TimeoutNow, VoteRequest, VoteResponse
from pyraftkv.core.quorum import LOST, WON, vote_result
from pyraftkv.core.types import CANDIDATE, FOLLOWER, LEADER, MEMBERSHIP, NO_NODE, PRE_CANDIDATE


class ElectionRules(LeaderRules):
    """Figure 2, "Rules for candidates", and the receivers of votes and vote requests."""

    __slots__ = ()

    def _tick_election(self) -> None:
        """Campaign in time, or as soon as this member may.

        The clock of one that may not goes on. A learner's that began again would make it hold its leader for alive, and
        refuse its vote to those who know that it was promoted (etcd#10998).
        """
        self._election_elapsed += 1
        if self._election_elapsed >= self._election_timeout + self._patience_ticks:
            self._campaign(by_transfer=False)

    def _can_campaign(self) -> bool:
        """Return whether this member may stand: a voter, under a configuration that it knows to be current.

        Configurations take effect when applied. One that is committed but not applied may already have removed this
        member, or changed whose votes count, so it must be applied first (and a received snapshot loaded).
        """
        if self.role is LEADER or not self.membership.is_voter(self.id) or self._log.is_restoring:
            return False
        if self._config.witness and not self.holds_payloads:
            return False  # It could not bring anybody on.
        return all(entry.kind is not MEMBERSHIP for entry in self._log.unapplied())

    def _campaign(self, *, by_transfer: bool) -> None:
        if not self._can_campaign() or (self._is_promised and not by_transfer and not self._is_alone()):
            return
        if self._config.pre_vote and not by_transfer:
            self._become_pre_candidate()
            self._request_votes(pre=True, by_transfer=False)
            self._maybe_win()
        else:
            self._stand(by_transfer=by_transfer)

    def _is_alone(self) -> bool:
        """Return whether no one else votes, or is going to as far as the log goes: no one then has its promise.

        1. A votes alone, and leads; a change lets B in. B leads next, and A promises.
        2. A starts again from a snapshot that says it is alone. The change stands in its log: it made it.
        """
        if self.membership.voters != frozenset({self.id}) or self.membership.is_joint:
            return False
        return all(entry.kind is not MEMBERSHIP for entry in self._log.following(self._log.applied))

    def _stand(self, *, by_transfer: bool) -> None:
        self._become_candidate()
        self._request_votes(pre=False, by_transfer=by_transfer)

    def _request_votes(self, *, pre: bool, by_transfer: bool) -> None:
        term = self.term + 1 if pre else self.term
        last_index, last_term = self._log.last_index, self._log.last_term
        send = self._send if pre else self._send_after_save
        for voter in sorted((self.membership.voters | self.membership.outgoing) - {self.id}):
            send(VoteRequest(voter, self.id, term, last_index, last_term, pre, by_transfer))

    def _is_leased(self, message: VoteRequest) -> bool:
        """Return whether a leader was heard so recently that nobody else should be elected (thesis §4.2.3, §6.4.1)."""
        if message.by_transfer:
            return False  # The leader itself asked for it, and has given its lease up.
        if self._is_promised:
            return True
        guarded = self._config.check_quorum or message.pre
        return guarded and self.leader != NO_NODE and self._election_elapsed < self._config.election_ticks

    def _on_vote_request(self, message: VoteRequest) -> None:
        """Vote for at most one candidate per term, and only for one whose log is up-to-date (Raft §5.2, §5.4.1).

        Who asks need not be a member here: it may have been promoted by an entry that this member has not applied.
        """
        if self._is_promised and not message.by_transfer:
            return  # A message of this term, which another one than its leader's has taught: the promise stands.
        is_up_to_date = self._log.is_up_to_date(last_index=message.last_index, last_term=message.last_term)
        if not (is_up_to_date and self.membership.is_voter(self.id)):
            self._note_last_change(message.sender)
        free = self.vote == NO_NODE and self.leader == NO_NODE
        may = self.vote == message.sender or free or (message.pre and message.term > self.term)
        if may and is_up_to_date:
            response = VoteResponse(message.sender, self.id, message.term, message.pre, True)
            if message.pre:
                self._send(response)
                return
            if self.vote != message.sender:
                self.vote = message.sender
                self._hard_dirty = True
            self._election_elapsed = 0
            self._send_after_save(response)
        else:
            self._send(VoteResponse(message.sender, self.id, self.term, message.pre, False))

    def _on_vote_response(self, message: VoteResponse) -> None:
        """Count a vote once, and only for what was asked: a rehearsal's yes is not a vote."""
        pre = self.role is PRE_CANDIDATE
        asked_term = self.term + 1 if pre and message.granted else self.term
        if message.pre is pre and message.term == asked_term:
            self._votes.setdefault(message.sender, message.granted)
            self._maybe_win()
        if not message.granted:
            self._note_last_change(message.sender)

    def _note_last_change(self, to: int) -> None:
        """Tell the other end of a vote which change is applied here, if any is."""
        index, log = self._last_change, self._log
        if index == 0:
            return
        term = log.term_at(index)
        if term is None:  # Compacted: any later committed index will do.
            index, term = log.commit, log.term_at(log.commit)
        assert term is not None, index
        self._send(CommitNotice(to, self.id, self.term, index, term))

    def _on_commit_notice(self, message: CommitNotice) -> None:
        """Commit what is known to be; a candidate that thereby hears of a change applies it before it goes on."""
        if self._log.matches(index=message.index, term=message.index_term):
            self._log.commit_to(message.index)
        if self.role is not FOLLOWER and not self._can_campaign():
            self._become_follower(term=self.term, leader=NO_NODE)

    def _count_own_vote(self) -> None:
        """Count this member's vote for itself, now that it is saved."""
        assert self.role is CANDIDATE, self.role
        assert self.vote == self.id, self.vote
        self._votes[self.id] = True
        self._maybe_win()

    def _maybe_win(self) -> None:
        result = vote_result(self.membership, self._votes)
        if result is WON:
            if self.role is PRE_CANDIDATE:
                self._stand(by_transfer=False)
            else:
                self._become_leader()
        elif result is LOST:
            self._become_follower(term=self.term, leader=NO_NODE)

    def _on_timeout_now(self, _: TimeoutNow) -> None:
        """The leader hands over: campaign at once, without a rehearsal (thesis §3.10)."""
        assert self.role is FOLLOWER, self.role
        self._campaign(by_transfer=True)
