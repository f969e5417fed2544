"""Which trained network a command is about: a run's, or that of a file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from theano_mgpu.recipes.settings import Model, Recipe

if TYPE_CHECKING:
    from theano_mgpu.recipes.trained import Trained

__all__ = ["Source"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The network: of a run, or a file of weights."""

    run: Path | None = None
    """The folder of a run."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run: the best evaluation's parameters, or the newest."""
    weights: Path | None = None
    """A file of weights instead: ours, or torchvision's (.safetensors, .pth)."""
    model: Model = "resnet50"
    """Of weights: the network that they belong to."""
    classes: Path | None = None
    """Of weights: a text file with the name of a class a line."""
    image_size: int = 224
    """Of weights: height and width of the images, in pixels."""
    contexts: str | None = None
    """The devices: "cuda:0,1", "cpu:4"; every GPU, else the CPU, if not given."""

    def read(self, *, split_over: str = "devices") -> Trained:
        """``split_over`` is that of the step which predicts, as in ``tm.function``.

        Raises ValueError where neither or both of ``run`` and ``weights`` are given, and what reading raises.
        """
        from theano_mgpu.devices import contexts
        from theano_mgpu.recipes.trained import of_run, of_weights

        if (self.run is None) == (self.weights is None):
            raise ValueError("give either --run RUN, a run's folder, or --weights FILE.")
        devices = contexts(self.contexts)
        if self.run is not None:
            return of_run(self.run, devices, self.checkpoint, split_over=split_over)
        assert self.weights is not None
        names = None if self.classes is None else self.classes.read_text().splitlines()
        recipe = Recipe(model=self.model, image_size=self.image_size)
        return of_weights(self.weights, recipe, devices, names, split_over=split_over)
