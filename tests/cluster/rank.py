"""One rank of the tests under mpirun: exchanges without end, until what its arguments say happens to one of them.

python rank.py FAULT RANK STEP: from this step on, this rank has this fault. Only the room is imported, not the package
around it, which takes seconds.
"""

import os
import signal
import sys
import time
import types
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "theano_mgpu"
sys.modules["theano_mgpu"] = types.ModuleType("theano_mgpu")
sys.modules["theano_mgpu"].__path__ = [str(PACKAGE)]

from theano_mgpu.cluster import agree, cluster  # noqa: E402

fault, faulty, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ranks = cluster()
ranks.at(run="runs/here")
print("process", os.getpid(), flush=True)
asked: list[int] = []
if fault == "saves":  # as StopSignals does
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
if fault == "differs":
    agree(ranks, "tm.function()", {"graph": "a\nb" if ranks.rank == faulty else "a\nc", "numpy": "2"})

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
                ranks.receive(__import__("numpy").zeros(1), 0, 7)
                ranks.wait([ranks.receive(__import__("numpy").zeros(1), 0, 8)])
    if fault == "everywhere" and step == last:
        raise KeyError("no such image")
    ranks.at(phase="gather")
    if any(ranks.gathered(bool(asked))):
        time.sleep(ranks.rank)  # who saves ends later
        print("saved", flush=True)
        sys.exit(143)
print("end", flush=True)
