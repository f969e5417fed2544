"""What a run shows while it goes on: a live display in a terminal, a plain line for each line of metrics elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from theano_mgpu.devices import Contexts
from theano_mgpu.training.process_memory import resident_bytes
from theano_mgpu.training.time_parts import mean_split, verdict

__all__ = ["LiveDisplay", "Screen", "metric_texts", "plain_line", "time_left"]

# A verdict looks at the last lines: a single one may have waited for a slow file.
_LINES = 5
_WIDEST = 80
# So many times the fastest rank's seconds are worth a word on the slowest.
_SLOW = 1.2
_BLOCKS = " ▏▎▍▌▋▊▉█"


class LiveDisplay:
    """How far a run is, inside a ``with`` block, on standard error.

    In a terminal: a bar, the newest metrics, the time left, the memory, where the time goes, and a sentence where the
    input is the bottleneck. Elsewhere: one plain line for each line of metrics.

    shown: False shows nothing. contexts: the devices whose memory is shown, where they tell it. console: another than
    standard error's.
    """

    def __init__(self, *, shown: bool = True, contexts: Contexts | None = None, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._shown, self._contexts = shown, contexts
        self._lines: deque[Mapping[str, Any]] = deque(maxlen=_LINES)
        self._began: tuple[int, float] | None = None
        self._memory: tuple[str, ...] = ()
        self._live: Live | None = None
        if shown and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(Screen(0), console=self._console, refresh_per_second=4)

    def update(self, step: int, line: Mapping[str, Any] | None = None, total: int | None = None) -> None:
        """``step`` steps are done, of ``total`` in the whole run, as far as anybody knows.

        line: the newest line of metrics; it is new where its "step" is this one.
        """
        if not self._shown:
            return
        # The first step compiles, or is the first after a stop: what is left is judged by those after it.
        self._began = self._began or (step, time.monotonic())
        left = time_left(self._began, (step, time.monotonic()), total)
        line = line or {}
        is_new = line.get("step") == step
        if is_new:
            self._lines.append(line)
            self._memory = tuple(_memory(self._contexts)) if self._live else ()
        if self._live is not None:
            self._live.update(Screen(step, total, left, line, self._memory, mean_split(self._lines)))
        elif is_new:
            print(plain_line(step, total, line, left), file=self._console.file, flush=True)

    def __enter__(self) -> LiveDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


@dataclass(frozen=True)
class Screen:
    """One state of the live display, which fits into as few columns as there are.

    left: seconds. line: of metrics. memory: texts. split: seconds a step, as ``time_split`` gives them.
    """

    step: int
    total: int | None = None
    left: float | None = None
    line: Mapping[str, Any] = field(default_factory=dict)
    memory: tuple[str, ...] = ()
    split: Mapping[str, float] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        width = options.max_width
        yield from _rows([f"step {_of(self.step, self.total)}", *_epoch(self.line), *_left(self.left)], width)
        yield ProgressBar(
            total=self.total,
            completed=self.step,
            width=min(width, _WIDEST),
            pulse=self.total is None,
            complete_style="cyan",
        )
        yield Segment.line()  # a bar does not end its line
        evaluated = {name: value for name, value in self.line.items() if name.endswith(("_loss", "_top1"))}
        trained = {name: value for name, value in self.line.items() if name not in evaluated}
        for numbers in (trained, evaluated):
            yield from _rows(metric_texts(numbers), width)
        yield from _rows(self.memory, width)
        total = sum(self.split.values())
        if total > 0:
            yield from _rows([_share(part, seconds / total) for part, seconds in self.split.items()], width)
        sentence = verdict(self.split)
        if sentence:
            yield Text(sentence, style="yellow")


def plain_line(step: int, total: int | None, line: Mapping[str, Any], left: float | None) -> str:
    """A line of metrics in words: "step 120/800  epoch 1.50  loss 0.513  top-1 84.1 %  24.3 images/s  2 min left"."""
    return "  ".join([f"step {_of(step, total)}", *_epoch(line), *metric_texts(line), *_left(left)])


def metric_texts(line: Mapping[str, Any]) -> list[str]:
    """What a line says of losses, accuracies and speed: ["loss 0.513", "top-1 84.1 %", "val loss 0.62", ...]."""
    texts = []
    for name, value in line.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        spoken = name.replace("_", " ").replace("top1", "top-1")
        if name == "loss" or name.endswith("_loss"):
            texts.append(f"{spoken} {value:.3f}" if value < 1000 else f"{spoken} {value:.3g}")
        elif name == "top1" or name.endswith("_top1"):
            texts.append(f"{spoken} {100 * value:.1f} %")
        elif name == "images_per_s":
            texts.append(f"{value:.1f} images/s" if value < 1000 else f"{value:,.0f} images/s")
    return [*texts, *_slowest(line)]


def time_left(began: tuple[int, float], now: tuple[int, float], total: int | None) -> float | None:
    """Seconds until step ``total``, at the mean speed between two (step, seconds); None where nobody knows."""
    steps = now[0] - began[0]
    if total is None or steps < 1:
        return None
    return max(total - now[0], 0) * (now[1] - began[1]) / steps


def _slowest(line: Mapping[str, Any]) -> list[str]:
    fastest, slowest = line.get("rank_seconds_min"), line.get("rank_seconds_max")
    if not fastest or not slowest or slowest < _SLOW * fastest:
        return []
    return [f"rank {line['slowest_rank']} takes {slowest / fastest:.1f} x the fastest rank's time"]


def _of(step: int, total: int | None) -> str:
    return f"{step}" if total is None else f"{step}/{total}"


def _epoch(line: Mapping[str, Any]) -> list[str]:
    return [f"epoch {line['epoch']:.2f}"] if isinstance(line.get("epoch"), (int, float)) else []


def _left(seconds: float | None) -> list[str]:
    if seconds is None:
        return []
    if seconds < 60:
        return [f"{seconds:.0f} s left"]
    if seconds < 3600:
        return [f"{seconds / 60:.0f} min left"]
    hours, minutes = divmod(round(seconds / 60), 60)
    return [f"{hours} h {minutes:02} min left"]


def _memory(contexts: Contexts | None) -> Iterator[str]:
    yield f"memory {resident_bytes() / 2**30:.1f} GiB"
    for context in contexts or ():
        memory = context.memory()
        if "bytes_in_use" in memory:
            limit = f" of {memory['bytes_limit'] / 2**30:.1f}" if "bytes_limit" in memory else ""
            yield f"{context.name} {memory['bytes_in_use'] / 2**30:.1f}{limit} GiB"


def _share(part: str, share: float) -> Text:
    """A part's name, a bar of at most ten cells, and its percentage."""
    eighths = round(share * 80)
    bar = "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
    name = "step" if part == "step_seconds" else part
    colour = "yellow" if part == "wait" else "cyan"
    return Text.assemble((f"{name} ", "dim"), (bar, colour), f"{' ' if bar else ''}{100 * share:.0f} %")


def _rows(pieces: Sequence[str | Text], width: int) -> Iterator[Text]:
    """As many pieces in a row as fit, with a gap between them; of a text the words before its numbers are dim."""
    row: list[Text] = []
    for piece in pieces:
        shown = piece if isinstance(piece, Text) else Text(piece)
        if isinstance(piece, str):
            shown.highlight_regex(r"^[a-z][^ ]*( [a-z]\S*)*(?= )", "dim")
        if row and sum(kept.cell_len + 3 for kept in row) + shown.cell_len > width:
            yield Text("   ").join(row)
            row = []
        row.append(shown)
    if row:
        yield Text("   ").join(row)
