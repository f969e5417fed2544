"""``theano-mgpu data``: what is in a folder of images, and packing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from theano_mgpu.cli.parsing import answer, parsed

__all__ = ["run"]


@dataclass(frozen=True)
class _Show:
    """What is in a folder of images, or a pack: classes, sizes, broken files, images that are in both splits."""

    folder: Positional[Path]
    """train/CLASS/*, val/CLASS/*; or CLASS/*; or a pack."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """What to do about broken files: name them, or stop."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class _Pack:
    """Write a folder of images as few large files, which slow disks read faster; train --data takes either."""

    folder: Positional[Path]
    """train/CLASS/*, val/CLASS/*; or CLASS/*."""
    out: Positional[Path]
    """The pack, a folder that is made."""
    shorter_side: int | None = None
    """Scale images down to it, in pixels, where it is longer; the bytes of the files as they are if not given."""
    quality: int = 90
    """Of images that are scaled, written as JPEG: 1 to 100."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """What to do about broken files: name them and leave them out, or stop."""
    json: bool = False
    """Print JSON."""


def run(words: Sequence[str]) -> None:
    """Carry out ``data show`` or ``data pack``."""
    commands = {"show": _show, "pack": _pack}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
    elif not words or words[0] in ("-h", "--help"):
        print(
            "usage: theano-mgpu data {show,pack} ...\n\n"
            "  show DIR      what is in a folder of images\n"
            "  pack DIR OUT  write it as few large files\n\n"
            "theano-mgpu data show --help and data pack --help say more."
        )
    else:
        raise ValueError(f"there is no 'data {words[0]}'; there are 'data show' and 'data pack'.")


def _show(words: Sequence[str]) -> None:
    options = parsed(_Show, words, "data show")

    from theano_mgpu.data import image_folder, is_pack, packed

    found = (
        packed(options.folder)
        if is_pack(options.folder)
        else image_folder(options.folder, on_bad_image=options.on_bad_image)
    )
    values = {
        "path": str(found.path),
        "classes": list(found.classes),
        "train": len(found.train),
        "val": len(found.val),
        "broken": [{"path": str(image.path), "problem": image.problem} for image in found.broken],
    }
    answer(values, str(found), as_json=options.json)


def _pack(words: Sequence[str]) -> None:
    options = parsed(_Pack, words, "data pack")

    from theano_mgpu.data import pack

    made = pack(
        options.folder,
        options.out,
        shorter_side=options.shorter_side,
        quality=options.quality,
        on_bad_image=options.on_bad_image,
    )
    size = sum(file.stat().st_size for file in options.out.iterdir())
    values = {"pack": str(options.out), "train": len(made.train), "val": len(made.val), "bytes": size}
    text = f"{options.out}: {len(made.train):,} training and {len(made.val):,} validation images, {size / 1e6:,.1f} MB"
    answer(values, text, as_json=options.json)
