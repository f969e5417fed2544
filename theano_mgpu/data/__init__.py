"""Data: folders of images, published data sets, the bundled photographs, and the pipeline from them to batches."""

from __future__ import annotations

from theano_mgpu.data.augmentation import Augmentation, ColourJitter, RandAugment, RandomErasing, TrivialAugment
from theano_mgpu.data.batches import Batch, Batches, BatchSource
from theano_mgpu.data.decoding import MAX_PIXELS, decode
from theano_mgpu.data.folders import BrokenImage, Duplicate, ImageFolder, image_folder
from theano_mgpu.data.image_files import ImageFile, ImageFiles
from theano_mgpu.data.in_memory import Examples, class_names, read_split
from theano_mgpu.data.input_pipeline import Pipeline, pipeline
from theano_mgpu.data.packing import pack
from theano_mgpu.data.packs import PACK_INDEX, Packed, PackedImages, is_pack, packed
from theano_mgpu.data.photographs import Photograph, bundled_photographs, photographs
from theano_mgpu.data.published import Splits, cifar10, cifar100, digits, mnist
from theano_mgpu.data.resize import Box, resized_crop
from theano_mgpu.data.sources import ImageSource

__all__ = [
    "MAX_PIXELS",
    "PACK_INDEX",
    "Augmentation",
    "Batch",
    "BatchSource",
    "Batches",
    "Box",
    "BrokenImage",
    "ColourJitter",
    "Duplicate",
    "Examples",
    "ImageFile",
    "ImageFiles",
    "ImageFolder",
    "ImageSource",
    "Packed",
    "PackedImages",
    "Photograph",
    "Pipeline",
    "RandAugment",
    "RandomErasing",
    "Splits",
    "TrivialAugment",
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
    "pipeline",
    "read_split",
    "resized_crop",
]
