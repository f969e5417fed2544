"""One rank of the tests under mpirun: exchanges without end, until what its arguments say happens to one of them.

python rank.py FAULT RANK STEP: from this step on, this rank has this fault. The modules are imported without the
packages around them, which take seconds.
"""

import os
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).parents[2] / "theano_mgpu"
for name, folder in ("theano_mgpu", PACKAGE), ("theano_mgpu.cluster", PACKAGE / "cluster"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]

from theano_mgpu.cluster.launch import cluster  # noqa: E402

fault, faulty, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ranks = cluster()
ranks.at(run="runs/here")
asked: list[int] = []
if fault == "saves":  # as StopSignals does
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))

os.write(1, f"process {os.getpid()}\n".encode())  # in one piece

for step in range(10**9 if fault != "none" else last):
    ranks.at(step=step, phase="computing")
    time.sleep(0.01)
    if step == last and ranks.rank == faulty:
        match fault:
            case "SIGKILL" | "SIGSEGV" | "SIGSTOP" | "SIGTERM":
                os.kill(os.getpid(), getattr(signal, fault))
            case "exception":
                raise KeyError("no such image")
            case "sleep":
                time.sleep(100)
            case "leaves":
                break
            case "status":
                sys.exit(3)
            case "_exit":
                os._exit(4)
            case "elsewhere":
                ranks.at(phase="evaluating")
                ranks.wait([ranks.receive(np.zeros(1), 0, 7)])
    if fault == "everywhere" and step == last:
        raise KeyError("no such image")
    ranks.at(phase="gather")
    if any(ranks.gathered(bool(asked))):
        time.sleep(ranks.rank)  # who saves ends later
        os.write(1, b"saved\n")
        sys.exit(143)
os.write(1, b"end\n")
