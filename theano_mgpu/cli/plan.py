"""``theano-mgpu plan``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tyro.conf import OmitArgPrefixes, Positional

from theano_mgpu.cli.nodes import Nodes, scaling
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
    cluster: OmitArgPrefixes[Nodes] = field(default_factory=Nodes)
    settings: OmitArgPrefixes[Recipe] = field(default_factory=Recipe)


def run(words: Sequence[str]) -> None:
    asked = parsed(_Options, words, "plan")
    options = parsed(_Options, words, "plan", dataclasses.replace(asked, settings=find_recipe(asked.recipe)))
    options.cluster.require_sense()

    from theano_mgpu.recipes.planning import plan

    planned, images_per_second = plan(options.settings, options.num_classes)
    values: dict[str, Any] = dataclasses.asdict(planned)
    values |= {"fits": planned.fits, "images_per_s": images_per_second}
    values["device"]["total"], values["host"]["total"] = planned.device.total, planned.host.total
    text = f"{planned}\n\nabout {images_per_second:,.3g} images/s, by the devices' speed in a product of matrices"
    if options.cluster.nodes is not None:
        from theano_mgpu.recipes.planning import host_memory_speed, step_work

        nodes = options.cluster
        work, platform = step_work(options.settings, options.num_classes, planned, nodes.step_seconds)
        work = dataclasses.replace(work, hidden=nodes.hidden, spread=nodes.spread)
        memory = host_memory_speed() if nodes.memory is None else 1.0
        machines = nodes.machines(memory, simulated=nodes.step_seconds is None and platform == "cpu")
        values["scaling"], table = scaling(nodes, work, machines, options.settings.model)
        text += f"\n\n{table}"
    answer(values, text, as_json=options.json)
