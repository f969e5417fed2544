"""The event files hold each number of each line: they are read back record by record, checksums included."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from network import train
from tensorboardX.proto.event_pb2 import Event, SessionLog

import theano_mgpu as tm
from theano_mgpu.training.tensorboard import tag


def crc32c(content: bytes) -> int:
    """Castagnoli's polynomial, reflected, a bit at a time (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    """TensorFlow's record format: the checksum is rotated by 15 bits, and a constant added."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """Of every file, the oldest first."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            length, of_length = struct.unpack("<QI", content[:12])
            record, (of_record,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
            assert of_length == masked(content[:8])
            assert of_record == masked(record)
            found.append(Event.FromString(record))
            content = content[16 + length :]
    return found


def scalars(folder):
    return {(value.tag, event.step): value.simple_value for event in events(folder) for value in event.summary.value}


def test_the_checksum_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283  # the published check value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[("loss", "train/loss"), ("learning_rate", "train/learning_rate"), ("epoch", "train/epoch")],
        *[("val_top1", "val/top1"), ("ema_loss", "ema/loss"), ("val_per_class_top1", "val/per_class_top1")],
        *[("wait", "time/wait"), ("step_seconds", "time/step_seconds"), ("images_per_s", "time/images_per_s")],
    ],
)
def test_names_are_grouped(name, expected):
    assert tag(name) == expected


def test_a_run_is_written_as_its_metrics_are(tmp_path, contexts):
    board = tm.training.TensorBoard(tmp_path / "tensorboard")
    train(tmp_path, contexts, evaluated=True, epochs=2, callbacks=[board])
    board.close()
    found = scalars(tmp_path / "tensorboard")
    lines = tm.training.MetricsFile(tmp_path / "metrics.jsonl").lines()
    expected = {
        (tag(name), line["step"]): value
        for line in lines
        if not line.get("final")
        for name, value in line.items()
        if name != "step" and value is not None
    }
    assert found == pytest.approx(expected, rel=1e-6)  # float32 in the file
    assert ("val/top1", 6) in found
    assert ("time/wait", 2) in found


def test_a_resumed_run_purges_what_comes_again(tmp_path):
    with tm.training.TensorBoard(tmp_path) as board:
        for step in (2, 4, 6):
            board({"step": step, "loss": 1.0, "top1": None})
    assert not [event for event in events(tmp_path) if event.HasField("session_log")]
    with tm.training.TensorBoard(str(tmp_path)) as board:
        board({"step": 4, "loss": 2.0})
    purges = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in purges] == [(4, SessionLog.START)]
    assert scalars(tmp_path)["train/loss", 4] == 2.0


def test_what_was_not_closed_is_written_when_the_process_ends(tmp_path):
    program = f"""
import sys
from theano_mgpu.training.tensorboard import TensorBoard
board = TensorBoard({str(tmp_path)!r})
for step in range(100):
    board({{"step": step, "loss": float(step)}})
sys.exit(143)
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=100)
    assert ended.returncode == 143
    assert scalars(tmp_path) == {("train/loss", step): step for step in range(100)}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tm.training.TensorBoard(tmp_path / "file" / "board")({"step": 1, "loss": 1.0})
