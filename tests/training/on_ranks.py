"""The tiny network's run as one of mpirun's ranks: ``mpiexec -n 2 python on_ranks.py FOLDER DEVICES SETTINGS``.

What a rank has seen and got stands in ``FOLDER-rank0.json`` and so on. "at" in the settings is a rank, the number of a
batch, and what happens there on that rank alone as the batch is made: a signal's name, "error", or "no folder".
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytensor.tensor as pt

import theano_mgpu as tm
from tests.training.network import examples, network, train
from theano_mgpu.data import Examples
from theano_mgpu.data.batches import Part


class Batches:
    """Counts what is made of each batch, by the cursor behind it, as rows of the examples; and something happens."""

    def __init__(self, folder: Path, rank: int, at: list[Any] | None) -> None:
        self.folder = folder
        self.source = tm.training.Batches(examples(), 8, seed=5)
        self.number, self.what = at[1:] if at and at[0] == rank else (None, None)
        self.made: dict[int, list[int]] = {}

    def batches_from(self, cursor: int, part: Part | None = None) -> Iterator[tm.data.Batch]:
        rows = {image.tobytes(): row for row, image in enumerate(examples().images)}
        for number, batch in enumerate(self.source.batches_from(cursor, part)):
            if number == self.number:
                self.happens(number)
            self.made[batch.cursor] = [rows[image.tobytes()] for image in batch.arrays[0]]
            yield batch

    def happens(self, number: int) -> None:
        if self.what == "error":
            raise OSError(f"batch {number} cannot be read")
        if self.what == "no folder":  # for checkpoints any more
            (self.folder / "checkpoints").rename(self.folder / "moved")
            (self.folder / "checkpoints").touch()
        else:
            os.kill(os.getpid(), getattr(signal, self.what))


def examined(contexts: tm.Contexts) -> tm.training.Examination:
    """Of images whose first three pixel values are the logits, many of them equally sure."""
    rng = np.random.default_rng(2)
    images = pt.tensor("images", shape=(None, 1, 2, 3), dtype="uint8")
    predict = tm.function([images], images[:, 0, 0].astype("float32"), contexts=contexts, split_over="ranks", shards=4)
    shown = Examples(rng.integers(0, 256, (30, 1, 2, 3), "uint8"), rng.integers(0, 3, 30, "int32"))
    shown.images[:, 0, 0] //= 128
    return tm.training.examine(predict, shown, "abc", 8, mistakes=9)


def main(
    folder: str,
    devices: int,
    *,
    at: list[Any] | None = None,
    update_on: str = "host",
    stop_at: int | None = None,
    **settings: Any,
) -> None:
    contexts = tm.contexts(f"cpu:{devices}")
    made = network(contexts, split_over="ranks", update_on=update_on)
    batches = Batches(Path(folder), contexts.rank, at)
    stops = [lambda line: line["step"] == stop_at]
    _, fitted = train(folder, contexts, made=made, source=batches, evaluated=True, callbacks=stops, **settings)
    found = examined(contexts)
    told = {
        "checksum": fitted.checksum,
        "own checksum": made.store.checksum(),
        "stopped_by": fitted.stopped_by,
        "metrics": dict(fitted.metrics),
        "made": batches.made,
        "confusion": found.confusion.tolist(),
        "loss": found.loss,
        "mistakes": [found.mistake_images.tolist(), found.mistake_confidences.tolist()],
    }
    Path(f"{folder}-rank{contexts.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), **json.loads(sys.argv[3]))
