"""``theano-mgpu plan``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tyro.conf import OmitArgPrefixes, Positional

from theano_mgpu.cli.parsing import answer, parsed
from theano_mgpu.recipes.files import find_recipe
from theano_mgpu.recipes.settings import Recipe

__all__ = ["run"]


@dataclass(frozen=True)
class _Options:
    """What a training would need of memory, and how fast it would go; nothing is trained. The options are train's."""

    recipe: Positional[str] = "imagenet-resnet50"
    """A recipe of the package, or a TOML file."""
    num_classes: int = 1000
    """The number of classes; the data is not looked at."""
    json: bool = False
    """Print JSON."""
    settings: OmitArgPrefixes[Recipe] = field(default_factory=Recipe)


def run(words: Sequence[str]) -> None:
    asked = parsed(_Options, words, "plan")
    options = parsed(_Options, words, "plan", dataclasses.replace(asked, settings=find_recipe(asked.recipe)))

    from theano_mgpu.recipes.planning import plan

    planned, images_per_second = plan(options.settings, options.num_classes)
    values: dict[str, Any] = dataclasses.asdict(planned)
    values |= {"fits": planned.fits, "images_per_s": images_per_second}
    values["device"]["total"], values["host"]["total"] = planned.device.total, planned.host.total
    text = f"{planned}\n\nabout {images_per_second:,.3g} images/s, by the devices' speed in a product of matrices"
    answer(values, text, as_json=options.json)
