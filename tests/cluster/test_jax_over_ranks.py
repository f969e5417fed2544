"""JAX's runtime of all ranks where it cannot start: the host's update goes on, the devices' says why not."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

PROGRAM = """
import numpy as np, pytensor, pytensor.tensor as pt
import theano_mgpu as tm

contexts = tm.contexts("cpu:1")
x = pt.vector("x", dtype="float32")
w = pytensor.shared(np.float32(1), name="w")

def step(update_on):
    gradient = tm.grad((w * x).mean(), [w])[0]
    return tm.function([x], updates={w: w - gradient}, contexts=contexts, update_on=update_on, name="train")

step("host")(np.arange(4, dtype="float32"))
assert w.get_value() == -0.5, w.get_value()
try:
    step("device")
except RuntimeError as error:
    print(f"rank {contexts.rank} says: {error}")
"""


def test_a_port_in_use_leaves_the_update_on_the_host(run, mpirun, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        ended = run(mpirun, "-n", "2", sys.executable, "program.py", cwd=tmp_path, JAX_COORDINATOR_ADDRESS=address)
    assert ended.returncode == 0, ended.stdout
    for rank in range(2):
        said = f'rank {rank} says: train: update_on="device" and synchronised batch norm take averages between'
        assert said in ended.stdout
    assert "could not start (rank 0: no port" in ended.stdout
