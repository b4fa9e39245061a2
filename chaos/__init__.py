"""`make chaos`: a whole Penstock of real processes, clients that keep their own record, and faults drawn from a seed.

`house` runs the processes, `storm` strikes them with the `faults`, `saboteur` is inside of them, `breaks` takes guards
out; `clients` use it, `record` is what they saw, `audit` compares, `report` prints. Production code knows none of it.
"""
