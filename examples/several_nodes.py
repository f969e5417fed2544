"""One script on several nodes: four ranks train, one is killed, two others go on, to the bits of one process.

    python examples/several_nodes.py                                      # all of it here: it starts mpirun itself
    mpirun -n 2 -hosts a,b python examples/several_nodes.py RUN 100 2     # 100 steps by two ranks, as on a cluster

``train`` below is a script as for one machine. Each rank makes its own devices, reads its own part of each batch, and
computes its share of the update; rank 0 keeps the run's folder. ``main`` trains three times: by one process of four
devices; by four ranks of one, of which the last is killed on the way, so that all are stopped, by name; and by two
ranks of two, which go on from the last checkpoint. It prints what the ranks said, and asserts that both runs have ended
with the same parameters, to the bit. Needs an MPI: pip install "theano-mgpu[mpi]".
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

DEVICES = 4  # of all ranks together


def train(run: str, steps: int, ranks: int, dies_at: int | None) -> None:
    """What every rank runs; alone, one process does. On a cluster, each rank would ask for its own GPUs."""
    contexts = tm.contexts(f"cpu:{DEVICES // ranks}")
    store = tm.ParameterStore(seed=0)
    images, labels = pt.tensor("images", shape=(None, 8, 8, 1), dtype="uint8"), pt.vector("labels", dtype="int32")
    rate = pt.scalar("rate", dtype="float32")
    pixels = (images.reshape((images.shape[0], 64)) / 16).astype("float32")
    hidden = tm.nn.relu(tm.layers.dense(store, "hidden", pixels, units=256))
    hidden = tm.layers.dropout(store, "dropout", hidden, 0.2, train=True)
    loss = tm.nn.softmax_cross_entropy(tm.layers.dense(store, "out", hidden, units=10), labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=rate) | store.updates()
    step = tm.function(
        [images, labels, rate], tm.average(loss), updates=updates, contexts=contexts, shards=DEVICES, split_over="ranks"
    )

    digits = load_digits()
    examples = tm.data.Examples(digits.images[..., None].astype("uint8"), digits.target.astype("int32"))
    batches = tm.training.Batches(examples, batch_size=64, seed=0)
    cosine = tm.schedules.warmup_cosine(0.1, total_steps=steps)

    def schedule(number: int) -> float:
        if number == dies_at and contexts.rank == ranks - 1:
            os.kill(os.getpid(), signal.SIGKILL)  # as a machine without power does
        return cosine(number)

    tm.training.fit(
        step, batches, store=store, run=run, resume=True, learning_rate=schedule, max_steps=steps, checkpoint_every=10
    )


def launch(run: Path, steps: int, ranks: int, dies_at: int | None = None) -> str:
    """This script as so many ranks; what they said."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-n", str(ranks)] if ranks > 1 else []
    command = [sys.executable, __file__, str(run), str(steps), str(ranks), *([str(dies_at)] if dies_at else [])]
    return subprocess.run([*mpirun, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def checksum(run: Path) -> str:
    """Of the parameters that a finished run has ended with."""
    return re.findall(r'"checksum": "(\w+)"', (run / "metrics.jsonl").read_text())[-1]


def main(steps: int = 100) -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone, together = Path(folder, "alone"), Path(folder, "together")
        print(launch(alone, steps, ranks=1))

        said = launch(together, steps, ranks=4, dies_at=steps // 2)
        print(f"four ranks, of which one was killed:\n{said}")
        assert "rank 3" in said

        print(f"two ranks go on:\n{launch(together, steps, ranks=2)}")
        print(f"one process {checksum(alone)[:16]}, four ranks and then two {checksum(together)[:16]}")
        assert checksum(alone) == checksum(together)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        given = [int(number) for number in sys.argv[2:]]
        train(sys.argv[1], *given, *([None] if len(given) < 3 else []))
    elif len(tm.contexts("cpu:1").ranks) > 1:
        sys.exit("Under mpirun it takes RUN, STEPS and RANKS, as in the second line above; without them, no mpirun.")
    else:
        main()
