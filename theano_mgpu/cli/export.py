"""``theano-mgpu export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from theano_mgpu.cli.parsing import answer, parsed
from theano_mgpu.cli.source import Source

__all__ = ["run"]


@dataclass(frozen=True)
class _Options:
    """Write the parameters of a trained network to a file."""

    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    layout: Literal["torch", "store"] = "torch"
    """As torchvision and timm load them, or as tm.ParameterStore does."""
    output: Path | None = None
    """The file: .pth or .safetensors; in the run's folder if not given."""
    json: bool = False
    """Print JSON."""


def run(words: Sequence[str]) -> None:
    options = parsed(_Options, words, "export")
    trained = options.source.read()
    if options.output is None and options.source.run is None:
        raise ValueError("give --output FILE, the file to write.")
    name = f"{trained.recipe.model}.{'pth' if options.layout == 'torch' else 'safetensors'}"
    output = options.output or Path(options.source.run or ".", name)
    trained.store.save(output, layout=options.layout)
    values = {"source": trained.source, "output": str(output), "layout": options.layout, "model": trained.recipe.model}
    text = f"{output}: {trained.recipe.model} with {len(trained.classes)} classes, from {trained.source}"
    if options.layout == "torch" and trained.recipe.depth in (18, 34, 50, 101, 152):  # the others are not torchvision's
        text += (
            f"\nin PyTorch: model = torchvision.models.{trained.recipe.model}(num_classes={len(trained.classes)}); "
            f"model.load_state_dict(torch.load('{output}'))"
        )
    answer(values, text, as_json=options.json)
