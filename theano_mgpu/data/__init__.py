"""Data: folders of images, the bundled photographs, and readers for published data sets."""

from __future__ import annotations

from theano_mgpu.data.decoding import MAX_PIXELS, decode
from theano_mgpu.data.folders import BrokenImage, Duplicate, ImageFolder, image_folder
from theano_mgpu.data.image_files import ImageFile, ImageFiles
from theano_mgpu.data.in_memory import Examples, class_names, read_split
from theano_mgpu.data.packing import pack
from theano_mgpu.data.packs import PACK_INDEX, Packed, PackedImages, is_pack, packed
from theano_mgpu.data.photographs import Photograph, bundled_photographs, photographs
from theano_mgpu.data.published import Splits, cifar10, cifar100, digits, mnist

__all__ = [
    "MAX_PIXELS",
    "PACK_INDEX",
    "BrokenImage",
    "Duplicate",
    "Examples",
    "ImageFile",
    "ImageFiles",
    "ImageFolder",
    "Packed",
    "PackedImages",
    "Photograph",
    "Splits",
    "bundled_photographs",
    "cifar10",
    "cifar100",
    "class_names",
    "decode",
    "digits",
    "image_folder",
    "is_pack",
    "mnist",
    "pack",
    "packed",
    "photographs",
    "read_split",
]
