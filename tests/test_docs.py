"""The Python blocks of the README and of docs/ run, top to bottom in one namespace a file, and print what they say.

A ``text`` block right behind a ``python`` block that prints is the expected output; ``...`` in it stands for anything.
The commands of a ``console`` block, lines that begin with ``$``, run in between and print what stands below them. A
``toml`` block that begins with a file's name as its comment is that file.
Each file runs in a process of its own, with eight simulated devices: this file is also the program that does it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEADLINE = 600

_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})(?P<info>.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the first line of its code in the file (from 1), and the code.

    ``follows`` says that only blank lines lie between the block before and this one.
    """

    language: str
    line: int
    code: str
    follows: bool


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks of a page, in order.

    Raises ValueError for a block without an end and for a Python block with anything behind the language's name.
    """
    found: list[Block] = []
    opened: tuple[str, str, int, bool] | None = None
    code: list[str] = []
    between = ["text before the first block"]
    for number, line in enumerate(markdown.splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence is None:
            between.append(line)
        elif opened is None and fence is not None:
            language, _, options = fence["info"].strip().partition(" ")
            if language.startswith("python") and (language != "python" or options):
                raise ValueError(f"line {number}: {line!r}: Python blocks are all run; begin them with ```python")
            opened, code = (fence["fence"], language, number + 1, not any(map(str.strip, between))), []
        elif opened is not None and line.rstrip() == opened[0]:
            found.append(Block(opened[1], opened[2], "\n".join(code) + "\n", opened[3]))
            opened, between = None, []
        else:
            code.append(line)
    if opened is not None:
        raise ValueError(f"line {opened[2] - 1}: the block has no end")
    return found


def matches(printed: str, expected: str) -> bool:
    """Whether the output is the expected one; ``...`` matches anything, blanks at the ends of lines do not count."""
    parts = [re.escape(part) for part in _trimmed(expected).split("...")]
    return re.fullmatch(".*?".join(parts), _trimmed(printed), flags=re.DOTALL) is not None


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def transcript(commands: str) -> str:
    """A console block with what its commands print now, on both streams, and their exit status where it is not 0."""
    lines = []
    for line in commands.splitlines():
        if line.startswith("$ "):
            command = line[2:].replace("theano-mgpu", f"{sys.executable} -m theano_mgpu", 1)
            process = subprocess.run(
                command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE
            )
            lines += [line, *process.stdout.splitlines()]
            lines += [f"(exit status {process.returncode})"] if process.returncode else []
    return "\n".join(lines)


def run(page: Path) -> list[str]:
    """Run a page's Python and console blocks here; what each of them printed. A traceback shows the page's lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    outputs = []
    for block in blocks(page.read_text()):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
            outputs.append(printed.getvalue())
        elif block.language == "console":
            outputs.append(transcript(block.code))
        elif block.language == "toml" and (name := re.match(r"# (\w+\.toml)\n", block.code)):
            Path(name[1]).write_text(block.code)
    return outputs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    found = blocks(page.read_text())
    if not any(block.language in ("python", "console") for block in found):
        return
    settings = {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),  # one command compiles what another one has
    }
    process = subprocess.run(
        [sys.executable, __file__, str(page)],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    outputs = iter(json.loads(process.stdout.splitlines()[-1]))
    printed = None
    for block in found:
        if block.language == "text" and block.follows and printed:
            assert matches(printed, block.code), (
                f"{page.name}, line {block.line}: expected\n{block.code}\nbut printed\n{printed}"
            )
        printed = next(outputs) if block.language == "python" else None
        if block.language == "console":
            happened = next(outputs)
            assert matches(happened, block.code), (
                f"{page.name}, line {block.line}: expected\n{block.code}\nbut this happened\n{happened}"
            )


def sentences() -> list[str]:
    """The package's texts; what is filled in is one ``\0`` each, which no heading has."""
    found = []
    for path in (ROOT / "theano_mgpu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def errors_explained() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^### `(.*)`$", page, flags=re.MULTILINE)


def test_errors_that_are_explained_are_the_packages_own() -> None:
    known = sentences()
    explained = errors_explained()
    assert len(explained) >= 20
    for heading in explained:
        assert any(said(heading, text) for text in known), f"{heading!r}: the package says nothing like it"


def said(heading: str, text: str) -> bool:
    """Whether the heading is a part of the text; its ``...`` are what the text is filled in with."""
    return re.search(".*\0.*".join(map(re.escape, heading.split("..."))), text, flags=re.DOTALL) is not None


def test_a_heading_is_found_with_its_wildcards_only() -> None:
    assert said("no '...' in ...", "there is no '\0' in \0.")
    assert not said("no 'key' in ...", "there is no '\0' in \0.")
    assert not said("there ... no", "there is no '\0' in \0.")


def test_blocks_are_found_with_their_lines_and_neighbours() -> None:
    page = (
        "# A\n\n```python\nprint(1)\n```\n\n```text\n1\n```\nwords\n```text\n2\n```\n````text\n```python\n```\n````\n"
    )
    assert blocks(page) == [
        Block("python", 4, "print(1)\n", False),
        Block("text", 8, "1\n", True),
        Block("text", 12, "2\n", False),
        Block("text", 15, "```python\n```\n", True),
    ]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python no-run\nprint(1)\n```\n", "line 1: .*Python blocks are all run"),
        ("text\n```python\nprint(1)\n", "line 2: the block has no end"),
    ],
    ids=["no-run", "no-end"],
)
def test_block_that_would_not_run_is_an_error(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks(page)


@pytest.mark.parametrize(
    ("printed", "expected", "equal"),
    [
        ("loss 0.31\n", "loss 0.31\n", True),
        ("loss 0.31  \n\n", "loss 0.31\n", True),
        ("loss 0.31\n", "loss ...\n", True),
        ("a\nb\nc\n", "a\n...\nc\n", True),
        ("loss 0.31\n", "loss 0.32\n", False),
        ("loss 0.31\nmore\n", "loss 0.31\n", False),
        ("(1)\n", ".1.\n", False),
    ],
)
def test_output_is_compared_exactly_but_for_wildcards(printed: str, expected: str, equal: bool) -> None:
    assert matches(printed, expected) is equal


if __name__ == "__main__":
    # As in the tests: what warns here would warn every reader. Before the package puts its own filter in front.
    warnings.simplefilter("error")
    import theano_mgpu as tm

    # JAX fixes their number when it starts.
    tm.contexts("cpu:8")
    print(json.dumps(run(Path(sys.argv[1]))))
