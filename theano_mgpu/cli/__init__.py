"""The command ``theano-mgpu``: one function a command, errors as sentences."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TextIO

from theano_mgpu.cluster import cluster, together

__all__ = ["command", "main"]

#: Each command's module, whose ``run`` it is, and what it does. Modules are imported when asked for.
_COMMANDS = {
    "train": ("training", "train a network, or go on with a run that was stopped"),
    "evaluate": ("evaluation", "top-1 and top-5 of a trained network, per class too"),
    "predict": ("prediction", "classes of images, with their probabilities"),
    "export": ("export", "write a run's parameters as a file that torchvision loads"),
    "report": ("report", "write a run's report.html"),
    "plan": ("plan", "memory, shards and speed of a training, before anything runs"),
    "devices": ("devices", "the devices that there are"),
    "data": ("data", "look at a folder of images, or pack it for slow disks"),
}


#: Under mpirun they are for rank 0 alone: no devices are needed.
_OF_ONE_RANK = ("report", "data")

#: What can be done about an error of the system.
_REMEDIES = {
    errno.ENOSPC: "Make room on the disk.",
    errno.EDQUOT: "Make room on the disk.",
    errno.EROFS: "Name a place that can be written.",
    errno.EACCES: "Name another place, or let this one be read and written.",
    errno.EPERM: "Name another place, or let this one be read and written.",
    errno.EISDIR: "A folder is there, where a file should be.",
    errno.ENOTDIR: "A file is there, where a folder should be.",
    errno.EEXIST: "Name another place, or move away what is there.",
    errno.ENOENT: "Check the name; a new file needs its folder made first.",
}


def command() -> int:
    """The process ``theano-mgpu``: what ``main`` gives is its exit status."""
    # JAX has been imported with the package by now, but has made no device yet.
    xla_process = importlib.import_module("theano_mgpu.cli.xla_process")
    xla_process.compute_alike_on_any_number_of_devices()
    xla_process.keep_compiled_programs()
    status = main()
    if status > 128:  # a program may still be compiled by a thread, which would crash as Python is taken apart
        sys.stdout.flush()
        os._exit(status)
    return status


class _Terminated(KeyboardInterrupt):
    """SIGTERM: it ends things in order, as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit status: 0, 1 for what went wrong, 2 for a line that is none.

    128 and the signal's number more where it was stopped by SIGINT or SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    rank = 0
    try:
        ranks = cluster()
        rank = ranks.rank if ranks else 0
        with _streams(), _one_voice(rank) as stderr, _terminable(), warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, f" (rank {rank})" if rank else "", stderr)
            for category in (UserWarning, RuntimeWarning):  # ours; others are for programmers
                warnings.simplefilter("default", category)
            if words and words[0] in _OF_ONE_RANK:
                return 0 if rank else _carried_out(words)
            with together(ranks, "in the command"):
                return _carried_out(words)
    except KeyboardInterrupt as stop:
        if not rank:
            print("theano-mgpu: stopped.", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif not rank:  # which was told what went wrong elsewhere
            named = " ".join(words[: 2 if words[:1] == ["data"] else 1])
            print(f"theano-mgpu {named}: {_sentence(error)}", file=sys.stderr)
        return 1


@contextmanager
def _streams() -> Iterator[None]:
    """Where standard output or error was closed, Python has None in its place; what is said goes nowhere then."""
    missing = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    for name in missing:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 until the process ends
    yield


@contextmanager
def _one_voice(rank: int) -> Iterator[TextIO]:
    """Under mpirun rank 0 speaks for all. What others may warn of goes to the standard error that is given."""
    stdout, stderr = sys.stdout, sys.stderr
    if not rank:
        yield stderr
        return
    with open(os.devnull, "w") as silent:
        sys.stdout = sys.stderr = silent
        try:
            yield stderr
        finally:
            sys.stdout, sys.stderr = stdout, stderr


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises, so that no half-written file and no worker process stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _carried_out(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), flush=True)
        return 0
    if words[0] == "--version":
        print(f"theano-mgpu {importlib.import_module('theano_mgpu').__version__}")
        return 0
    if words[0] not in _COMMANDS:
        near = difflib.get_close_matches(words[0], _COMMANDS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        commands = ", ".join(_COMMANDS)
        print(f"theano-mgpu: there is no command '{words[0]}'.{hint} There are {commands}.", file=sys.stderr)
        return 2
    module, _ = _COMMANDS[words[0]]
    importlib.import_module(f"theano_mgpu.cli.{module}").run(words[1:])
    return 0


def _sentence(error: Exception) -> str:
    text = _without_function(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        text = _without_function(str(error.strerror))
        if text == os.strerror(error.errno):  # the system's own words
            where = "" if error.filename is None else f"'{error.filename}': "
            text = f"{where}{text}. {_REMEDIES.get(error.errno, '')}".rstrip()
    if (
        isinstance(error, (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, NotImplementedError))
        and text
    ):
        return text
    return f"{type(error).__name__}: {text} This is a fault of the program; --debug shows where."


def _show_warning(
    where: str,
    stderr: TextIO,
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"theano-mgpu{where}: {_without_function(str(message))}", file=stderr)


def _without_function(sentence: str) -> str:
    """Without the function that says it: nobody called ``image_folder()`` here."""
    return re.sub(r"^\w+\(\): ", "", sentence)


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: theano-mgpu COMMAND ...",
            "",
            "Training of image networks over several GPUs.",
            "",
            *lines,
            "",
            "theano-mgpu COMMAND --help says more. --debug shows where an error was raised; --version which this is.",
            "Without anything else, theano-mgpu train trains on the bundled photographs, minutes on two cores.",
        ]
    )
