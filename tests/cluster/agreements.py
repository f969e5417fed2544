"""Under mpirun: what one of the ranks has is different, in several ways, and rank 0 prints what is said of it."""

import sys

from theano_mgpu import RanksDifferError
from theano_mgpu.cluster import agree, cluster

ranks = cluster()
different = ranks.rank == ranks.size - 1
graph = "\n".join(f"line {number}" for number in range(1000))
facts = {"graph": graph, "shards": 4, "pytensor": "3.0.7", "wide": "a" * 1000 + "c" * 1001}
agree(ranks, "tm.function()", facts)
for name, changed in {
    "value": {**facts, "shards": 8},
    "line": {**facts, "graph": graph.replace("line 600", "line 6000")},
    "shorter": {**facts, "graph": graph.removesuffix("\nline 999")},
    "missing": {name: fact for name, fact in facts.items() if name != "pytensor"},
    "two": {**facts, "shards": 8, "pytensor": "3.0.6"},
    "long": {**facts, "pytensor": "3" * 1000},
    "empty": {**facts, "pytensor": ""},
    "far": {**facts, "wide": "a" * 1000 + "b" + "c" * 1000},
}.items():
    try:
        agree(ranks, "tm.function()", changed if different else facts)
    except RanksDifferError as error:
        everyone = ranks.gathered(str(error))
        assert everyone == [everyone[0]] * ranks.size
        if ranks.rank == 0:
            print(f"[{name}] {error}", flush=True)
    else:
        sys.exit(f"{name} was not seen")
try:
    agree(ranks, "tm.function()" if different else "tm.verify()", facts)
except RanksDifferError as error:
    if ranks.rank == 0:
        print(f"[call] {error}", flush=True)
