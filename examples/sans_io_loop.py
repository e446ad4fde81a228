"""The Raft machine by itself, without asyncio, files or sockets: three members, a leader that dies and comes back.

The network is a list of messages, each disk two variables, and time a loop. All that a real driver does more is to do
these things for real, and to take snapshots, for which this log is too short. The order that matters is in
`Member.turn`, and drawn in `pyraftkv/core/ready.py`.
"""

from random import Random

from pyraftkv import core
from pyraftkv.core import Entry, HardState, Raft

MEMBERS = core.Membership(voters=frozenset({1, 2, 3}))


class Member:
    """One machine, its disk, and the state that its committed entries make."""

    def __init__(self, node: int) -> None:
        self.node, self.hard_state, self.log = node, HardState(), list[Entry]()  # The disk: what outlives a crash.
        self.start()

    def start(self) -> None:
        """Begin from the disk. Whatever is committed is applied again, from the first entry on."""
        stored = core.Stored(self.hard_state, entries=list(self.log), membership=MEMBERS)
        self.raft = Raft(core.Config(id=self.node), stored=stored, rng=Random(self.node))
        self.values: dict[str, str] = {}
        self.inbox: list[core.Input] = []
        self.alive = True

    def turn(self) -> list[core.Message]:
        """Feed the machine what came, do what it asks for, and return what may leave now."""
        inputs, self.inbox = self.inbox, []
        self.raft.feed(inputs)
        ready = self.raft.ready()
        if ready.save is not None:
            self.write(ready.save)
            self.inbox.append(core.Saved(ready.save.number))
        for entry in ready.committed:
            key, _, value = entry.payload.decode().partition("=")
            if key:  # A leader begins its term with an empty entry.
                self.values[key] = value
            self.inbox.append(core.Applied(entry.index))
        return ready.messages + ready.messages_after_save  # The latter only now: `save` is on the disk.

    def write(self, save: core.Save) -> None:
        """Save what must not be forgotten; new entries replace everything from the first of them on."""
        self.hard_state = save.hard_state or self.hard_state
        if save.entries:
            self.log[save.entries[0].index - 1 :] = save.entries


def run(members: dict[int, Member], *, seconds: float) -> None:
    """Let time pass: a tick of 10 ms for everyone, then messages until nobody has anything more to say."""
    for _ in range(round(seconds * 100)):
        for member in members.values():
            member.inbox.append(core.Tick())
        while any(member.alive and member.inbox for member in members.values()):
            sent = [message for member in members.values() if member.alive for message in member.turn()]
            for message in sent:
                members[message.to].inbox.append(message)
        for member in members.values():
            member.inbox.clear()  # What was said to the dead is lost.


members = {node: Member(node) for node in (1, 2, 3)}
for key, value in (("greeting", "hello"), ("parting", "goodbye")):
    run(members, seconds=3)
    leader = next(member for member in members.values() if member.alive and member.raft.role is core.LEADER)
    leader.inbox.append(core.Propose([f"{key}={value}".encode()]))
    run(members, seconds=0.1)
    print(f"term {leader.raft.term}: member {leader.node} leads, and {key} is {leader.values[key]} on its side")
    leader.alive = False
for member in (dead for dead in members.values() if not dead.alive):
    member.start()
run(members, seconds=3)
print("in the end:", *(member.values for member in members.values()), sep="\n")
