"""Transcripts: stories of commands and what came of them, in text files that people read and tests run.

::

    Three members, and nobody leads yet.

    > cluster 3
    > campaign 1
        1: now PRE_CANDIDATE leader=0 term=0
        1: send 1->2 VoteRequest term=1 last=0@0 pre
        1: send 1->3 VoteRequest term=1 last=0@0 pre

A line that begins with ``> `` is a command, the indented lines below it are its outcome, and everything else is prose.
``pytest tests/core/test_transcripts.py --rewrite`` writes the outcomes anew; read the difference before you keep it.

Commands either take one step of one member and tell all that it asks for (`STEPS`), or go on until nothing is left to
do and tell only of roles, reads, restored snapshots and what was handed back (`SPANS`), or look at what there is
(`VIEWS`). A step that is followed by ``quietly`` tells as little as a span, and a span ``aloud`` as much as a step.

Messages are chosen by their place on the network (``2``), by their ends (``1->3``, ``1->*``), by their name
(``VoteRequest``), or by several of these. The safety properties of `tests.core.cluster.Checker` are asserted all the
while.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pyraftkv.core import describe_entry, describe_membership, describe_message, describe_ready
from pyraftkv.core.membership import (
    ADD_LEARNER,
    ADD_VOTER,
    ADD_WITNESS,
    REMOVE,
    Change,
    InvalidChange,
    MembershipChange,
    Transition,
    changed,
)
from pyraftkv.core.messages import Message
from pyraftkv.core.progress import PeerStatus
from pyraftkv.core.ready import (
    Campaign,
    ForgetLeader,
    Input,
    KeepPayloads,
    PeerUnreachable,
    Propose,
    ProposeMembership,
    ReadIndex,
    Ready,
    SnapshotSent,
    Tick,
    TransferLeadership,
)
from pyraftkv.core.types import Entry, Membership, SnapshotMeta
from tests.core.cluster import Cluster, Member, PendingSave

PROMPT, INDENT = "> ", "    "
QUIET = re.compile(r"now |read |reject |restore ")
"""What is told of a span."""


class TranscriptError(Exception):
    """A transcript says something that nobody understands, or that cannot be done; names the line."""


class Stage(Cluster):
    """A cluster that tells what its members ask for."""

    def __init__(self, size: int, *, seed: int = 0, membership: Membership | None = None, **knobs: int | bool) -> None:
        self.told: list[str] = []
        self.aloud = True
        self.stalled: dict[int, deque[PendingSave]] = {}
        """Members whose disks stand still, and what waits there."""
        super().__init__(size, seed=seed, membership=membership, **knobs)

    def tell(self, node: int, line: str, *, always: bool = False) -> None:
        """Note a line of the outcome."""
        if always or self.aloud or QUIET.match(line):
            self.told.append(f"{node}: {line}")

    def feed(self, node: int, *inputs: Input) -> Ready:
        """Feed a member, and tell what its `Ready` asks for."""
        ready = super().feed(node, *inputs)
        if node in self.stalled:
            saves = self.members[node].saves
            self.stalled[node].extend(saves)
            saves.clear()
        if ready != Ready():
            for line in describe_ready(ready).splitlines():
                self.tell(node, line)
        return ready

    def complete_save(self, node: int) -> None:
        """Complete the oldest save, and tell which messages it lets go."""
        pending = self.members[node].saves[0]
        self.tell(node, f"saved {pending.number}")
        for message in pending.messages:
            self.tell(node, f"send {describe_message(message)}")
        super().complete_save(node)

    def apply_page(self, node: int) -> None:
        """Apply the oldest page, and tell which entries."""
        page = self.members[node].pages[0]
        if isinstance(page, SnapshotMeta):
            self.tell(node, f"loaded the snapshot {page.index}@{page.term}")
        else:
            self.tell(node, f"applied {', '.join(map(describe_entry, page))}")
        super().apply_page(node)

    def _change_membership(self, member: Member, entry: Entry) -> Membership:
        """Apply a change, and tell what comes of it."""
        change = self.changes[entry.payload] = parse_change(entry.payload.decode())
        try:
            changed(member.membership, change)
        except InvalidChange as error:
            told = f"refused: {error}"
        else:
            told = f"members {describe_membership(changed(member.membership, change))}"
        self.tell(member.config.id, told, always=True)
        return super()._change_membership(member, entry)


CHANGE_KINDS = {"+": ADD_VOTER, "~": ADD_LEARNER, "-": REMOVE, "^": ADD_WITNESS}


def parse_change(text: str) -> MembershipChange:
    """Return ``auto +4 ~5 ^6 -1`` as a change: voter 4, learner 5 and witness 6 come, 1 goes; an empty text leaves."""
    if not text:
        return MembershipChange()
    transition, *words = text.split()
    changes = [Change(CHANGE_KINDS[word[0]], int(word[1:])) for word in words]
    return MembershipChange(changes, Transition[transition.upper()])


class Words:
    """What follows a command's name: words in order, and options as ``name=value``."""

    def __init__(self, words: list[str]) -> None:
        self.words = [word for word in words if "=" not in word]
        self.options = dict(word.split("=", 1) for word in words if "=" in word)

    def number(self) -> int:
        """Take the next word, a number."""
        if not self.words or not self.words[0].isdecimal():
            raise TranscriptError(f"a number should stand where {' '.join(self.words) or 'nothing'!r} does")
        return int(self.words.pop(0))

    def numbers(self) -> list[int]:
        """Take all the words that are left, numbers all of them."""
        return [self.number() for _ in list(self.words)]

    def flag(self, word: str) -> bool:
        """Take a word that may stand at the end."""
        if self.words and self.words[-1] == word:
            self.words.pop()
            return True
        return False

    def rest(self) -> list[str]:
        """Take all the words that are left."""
        words, self.words = self.words, []
        return words

    def option(self, name: str) -> str:
        """Take an option; empty when it is not there."""
        return self.options.pop(name, "")

    def end(self) -> None:
        """Complain about what nobody took."""
        if left := [*self.words, *self.options]:
            raise TranscriptError(f"nobody knows what {left} should mean here")


class Player:
    """Plays one transcript's commands, one after the other."""

    def __init__(self) -> None:
        self.stage = Stage(0)

    def play(self, command: str) -> list[str]:
        """Take one command; return its outcome. Raises `TranscriptError`."""
        name, *words = command.split()
        handler = COMMANDS.get(name)
        if handler is None:
            raise TranscriptError(f"there is no command {name!r}")
        rest = Words(words)
        self.stage.aloud = not rest.flag("quietly") if name in STEPS else rest.flag("aloud")
        handler(self, rest)
        rest.end()
        told, self.stage.told = self.stage.told, []
        return told or ["nothing"] * (name in STEPS and self.stage.aloud)

    # --- Who there is ------------------------------------------------------------------------------------------------

    def cluster(self, words: Words) -> None:
        """``cluster SIZE [learners=4,5] [witness=3] [seed=N] [knob=value ...]``: begin anew."""
        size, seed, learners = words.number(), words.option("seed"), _numbers(words.option("learners"))
        witnesses = _numbers(words.option("witness"))
        knobs = {name: _value(value) for name, value in words.options.items()}
        words.options = {}
        voters = frozenset(range(1, size + 1)) - learners
        membership = Membership(voters=voters, learners=learners, witnesses=witnesses)
        self.stage = Stage(size, seed=int(seed or 0), membership=membership, **knobs)

    def add(self, words: Words) -> None:
        """``add NODE``: start a member with an empty disk that belongs to nothing yet."""
        self.stage.add(words.number(), membership=Membership())

    def squeeze(self, words: Words) -> None:
        """``squeeze NODE``: a witness has no room for payloads from now on."""
        self.stage.feed(words.number(), KeepPayloads(False))

    def crash(self, words: Words) -> None:
        """``crash NODE [written=N]``: stop it; of its pending saves the first N reach the disk."""
        self.stage.crash(words.number(), written=int(words.option("written") or 0))

    def stall(self, words: Words) -> None:
        """``stall NODE``: its disk stands still from now on, but for what ``save`` completes."""
        self.stage.stalled[words.number()] = deque()

    def unstall(self, words: Words) -> None:
        """``unstall NODE``: its disk goes on."""
        node = words.number()
        self.stage.members[node].saves.extend(self.stage.stalled.pop(node))

    def restart(self, words: Words) -> None:
        """``restart NODE``: start it again from its disk."""
        self.stage.restart(words.number())

    # --- Steps -------------------------------------------------------------------------------------------------------

    def tick(self, words: Words) -> None:
        """``tick NODE [COUNT]``: let one member's clock tick, and nobody else's."""
        node = words.number()
        for _ in range(words.number() if words.words else 1):
            self.stage.feed(node, Tick())

    def campaign(self, words: Words) -> None:
        """``campaign NODE``: start an election."""
        self.stage.feed(words.number(), Campaign())

    def propose(self, words: Words) -> None:
        """``propose NODE PAYLOAD ...``: propose some payloads at once."""
        self.stage.feed(words.number(), Propose([word.encode() for word in words.rest()]))

    def read(self, words: Words) -> None:
        """``read NODE CONTEXT``: ask for a read index."""
        self.stage.feed(words.number(), ReadIndex(words.number()))

    def transfer(self, words: Words) -> None:
        """``transfer NODE TO``: let the leader hand over; 0 is the best successor."""
        self.stage.feed(words.number(), TransferLeadership(words.number()))

    def change(self, words: Words) -> None:
        """``change NODE auto|joint|explicit +4 ~5 -1``: propose a change of the membership."""
        node, payload = words.number(), " ".join(words.rest())
        parse_change(payload)
        self.stage.feed(node, ProposeMembership(payload.encode(), leave=False))

    def leave(self, words: Words) -> None:
        """``leave NODE``: propose to leave the joint configuration."""
        self.stage.feed(words.number(), ProposeMembership(b"", leave=True))

    def forget(self, words: Words) -> None:
        """``forget NODE``: it follows nobody until it hears of a leader again."""
        self.stage.feed(words.number(), ForgetLeader())

    def unreachable(self, words: Words) -> None:
        """``unreachable NODE PEER``: the transport of NODE lost PEER."""
        self.stage.feed(words.number(), PeerUnreachable(words.number()))

    def sent(self, words: Words) -> None:
        """``sent NODE PEER [failed]``: the snapshot for PEER was delivered, or given up."""
        failed = words.flag("failed")
        self.stage.feed(words.number(), SnapshotSent(words.number(), not failed))

    def snapshot(self, words: Words) -> None:
        """``snapshot NODE [keep=N]``: snapshot its state; its disk keeps the last N entries before it."""
        meta = self.stage.take_snapshot(words.number(), keep=int(words.option("keep") or 0))
        self.stage.told = [f"snapshot {meta.index}@{meta.term}"]

    def save(self, words: Words) -> None:
        """``save NODE [COUNT]``: complete its oldest saves."""
        node = words.number()
        saves = self.stage.members[node].saves
        for _ in range(words.number() if words.words else 1):
            if stalled := self.stage.stalled.get(node):
                saves.append(stalled.popleft())
            if not saves:
                raise TranscriptError(f"{node} has nothing to save")
            self.stage.complete_save(node)

    def apply(self, words: Words) -> None:
        """``apply NODE``: apply its oldest page of committed entries, or load a received snapshot."""
        node = words.number()
        if not self.stage.members[node].pages:
            raise TranscriptError(f"{node} has nothing to apply")
        self.stage.apply_page(node)

    def fetch(self, words: Words) -> None:
        """``fetch NODE``: read from its disk what it asked for."""
        self.stage.answer_fetch(words.number())

    def ready(self, words: Words) -> None:
        """``ready NODE``: call `ready()` again, with no input."""
        self.stage.feed(words.number())

    # --- The network -------------------------------------------------------------------------------------------------

    def deliver(self, words: Words) -> None:
        """``deliver WHICH``: deliver these messages, oldest first, and none that they cause."""
        for message in self._chosen(words):
            self.stage.deliver(self._place(message))

    def repeat(self, words: Words) -> None:
        """``repeat WHICH``: deliver a copy; the message stays on its way."""
        for message in self._chosen(words):
            self.stage.deliver(self._place(message), keep=True)

    def drop(self, words: Words) -> None:
        """``drop WHICH``: lose these messages."""
        for message in self._chosen(words):
            self.stage.told.append(f"lost {describe_message(message)}")
            del self.stage.network[self._place(message)]

    def isolate(self, words: Words) -> None:
        """``isolate NODE ...``: from now on lose everything between these and the others."""
        self.stage.isolate(*words.numbers())

    def heal(self, _: Words) -> None:
        """``heal``: lose nothing any more."""
        self.stage.heal()

    def _chosen(self, words: Words) -> list[Message]:
        chosen = list(self.stage.network)
        for word in words.rest():
            if word.isdecimal():
                chosen = self.stage.network[int(word) - 1 : int(word)]
            elif ends := re.fullmatch(r"(\d+|\*)->(\d+|\*)", word):
                chosen = [each for each in chosen if ends[1] in ("*", f"{each.sender}")]
                chosen = [each for each in chosen if ends[2] in ("*", f"{each.to}")]
            else:
                chosen = [each for each in chosen if type(each).__name__ == word]
        if not chosen:
            raise TranscriptError("there is no such message on its way")
        return chosen

    def _place(self, message: Message) -> int:
        return next(place for place, each in enumerate(self.stage.network) if each is message)

    # --- Spans -------------------------------------------------------------------------------------------------------

    def settle(self, _: Words) -> None:
        """``settle``: deliver, save, apply and read until nothing is left to do."""
        self.stage.settle()

    def wait(self, words: Words) -> None:
        """``wait COUNT``: let time pass for everybody, and settle after each tick."""
        self.stage.tick(count=words.number())

    def elect(self, words: Words) -> None:
        """``elect NODE``: let its election timeout pass, and nobody else's, until it leads."""
        self.stage.elect(words.number())
        if not self.stage.aloud:
            self.stage.told = [line for line in self.stage.told if "now LEADER" in line]

    # --- Views -------------------------------------------------------------------------------------------------------

    def network(self, _: Words) -> None:
        """``network``: the messages on their way, oldest first."""
        for place, message in enumerate(self.stage.network, 1):
            self.stage.told.append(f"{place}. {describe_message(message)}")

    def status(self, words: Words) -> None:
        """``status [NODE ...]``: role, term, vote, leader, and the marks of the log."""
        for node in words.numbers() or self.stage.members:
            if not self.stage.members[node].alive:
                self.stage.tell(node, "down", always=True)
                continue
            now = self.stage[node].status()
            self.stage.tell(
                node,
                f"{now.role.name} term={now.term} vote={now.vote} leader={now.leader} last={now.last_index} "
                f"saved={now.saved} commit={now.commit} applied={now.applied}"
                f"{' SINGLE COPY' if now.single_copy else ''}",
                always=True,
            )

    def log(self, words: Words) -> None:
        """``log [NODE ...]``: the entries in memory."""
        for node in words.numbers() or self.stage.members:
            log = self.stage[node]._log
            first, last = log.memory_index, log.last_index
            entries = log.page(lo=first, hi=last + 1, bytes_max=1 << 30) if first <= last else []
            self.stage.tell(node, ", ".join(map(describe_entry, entries)) or "empty", always=True)

    def state(self, words: Words) -> None:
        """``state [NODE ...]``: the payloads that were applied."""
        for node in words.numbers() or self.stage.members:
            payloads = [payload.decode() for payload in self.stage.members[node].state if payload]
            self.stage.tell(node, " ".join(payloads) or "nothing", always=True)

    def membership(self, words: Words) -> None:
        """``membership [NODE ...]``: the configuration in force."""
        for node in words.numbers() or self.stage.members:
            self.stage.tell(node, describe_membership(self.stage[node].membership), always=True)

    def progress(self, words: Words) -> None:
        """``progress NODE``: what a leader knows of the others."""
        for peer, known in self.stage[words.number()].status().peers.items():
            self.stage.told.append(f"{peer}: {_describe_progress(known)}")


def _numbers(text: str) -> frozenset[int]:
    return frozenset(map(int, text.split(","))) if text else frozenset()


def _value(text: str) -> int | bool:
    return text == "on" if text in ("on", "off") else int(text)


def _describe_progress(known: PeerStatus) -> str:
    parts = [f"{known.state.name} match={known.match} next={known.next}"]
    if known.inflight_messages:
        parts.append(f"inflight={known.inflight_messages}")
    if known.pending_snapshot:
        parts.append(f"pending_snapshot={known.pending_snapshot}")
    if not known.active:
        parts.append("silent")
    return " ".join(parts)


Handler = Callable[[Player, Words], None]
OTHERS: list[Handler] = [
    Player.cluster,
    Player.add,
    Player.squeeze,
    Player.crash,
    Player.stall,
    Player.unstall,
    Player.isolate,
    Player.heal,
    Player.drop,
]
STEPS: dict[str, Handler] = {
    handler.__name__: handler
    for handler in (
        Player.restart,
        Player.tick,
        Player.campaign,
        Player.propose,
        Player.read,
        Player.transfer,
        Player.change,
        Player.leave,
        Player.forget,
        Player.unreachable,
        Player.sent,
        Player.snapshot,
        Player.save,
        Player.apply,
        Player.fetch,
        Player.ready,
        Player.deliver,
        Player.repeat,
    )
}
SPANS: list[Handler] = [Player.settle, Player.wait, Player.elect]
VIEWS: list[Handler] = [Player.network, Player.status, Player.log, Player.state, Player.membership, Player.progress]
COMMANDS: dict[str, Handler] = {**STEPS, **{handler.__name__: handler for handler in (*OTHERS, *SPANS, *VIEWS)}}


def play(path: Path) -> str:
    """Play a transcript; return it with the outcomes as they are now. Raises `TranscriptError` with the line."""
    player, lines = Player(), list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(INDENT):
            continue
        lines.append(line)
        if line.startswith(PROMPT):
            try:
                lines += [INDENT + told for told in player.play(line.removeprefix(PROMPT))]
            except (TranscriptError, AssertionError) as error:
                raise TranscriptError(f"{path.name}:{number}: {line}: {error}") from error
    return "\n".join(lines) + "\n"
