"""The long run: seeds of the simulator that nobody has run before, counted in the repository.

``make soak MINUTES=60`` goes on where the last one stopped. Each seed runs in a process of its own, so that what one
leaves behind cannot hide what another does, and every twentieth runs twice, under two hash seeds: what happens must
not depend on them. `counters.json` is written after every seed; a run that is killed loses what is under way.
"""
