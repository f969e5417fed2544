"""The command ``theano-mgpu``: one function a command, errors as sentences."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

__all__ = ["main"]

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit status: 0, 1 for what went wrong, 2 for a line that is none."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            for category in (UserWarning, RuntimeWarning):  # ours; others are for programmers
                warnings.simplefilter("default", category)
            return _carried_out(words)
    except KeyboardInterrupt:
        print("theano-mgpu: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"theano-mgpu {words[0]}: {_sentence(error)}", file=sys.stderr)
        return 1


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
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"'{error.filename}': {error.strerror}"
    elif isinstance(error, OSError) and len(error.args) > 1:
        text = str(error.args[1])
    if (
        isinstance(error, (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, NotImplementedError))
        and text
    ):
        return text
    return f"{type(error).__name__}: {text} This is a fault of the program; --debug shows where."


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"theano-mgpu: {message}", file=sys.stderr)


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
