"""Data: the bundled photographs, and a reader for folders of images in ImageNet's layout."""

from __future__ import annotations

from theano_mgpu.data.image_folder import Examples, class_names, read_split
from theano_mgpu.data.photographs import Photograph, bundled_photographs, photographs

__all__ = ["Examples", "Photograph", "bundled_photographs", "class_names", "photographs", "read_split"]
