"""What a user sees of a cut: ``print(step.cut)`` as text, ``step.draw("cut.svg")`` as a picture. No JAX here."""

from __future__ import annotations

from theano_mgpu.drawing.summary import Running
from theano_mgpu.drawing.svg import draw
from theano_mgpu.drawing.text import diagram

__all__ = ["Running", "diagram", "draw"]
