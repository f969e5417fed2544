"""Bytes of an image file to pixels: JPEG through simplejpeg, PNG, WebP and GIF's first frame through Pillow."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from theano_mgpu.errors import ImageError

__all__ = ["MAX_PIXELS", "check_pixels", "decode", "image_size", "looks_whole"]

#: Pillow's limit, 256 MiB of RGB: a file of a few kilobytes may claim any number of pixels (a decompression bomb).
MAX_PIXELS = 1024**3 // 4 // 3

# A plug-in is called by itself, as ``Image.open`` would try fifty formats and check a limit of the whole process.
_PLUGINS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
_ORIENTATION = 0x0112  # EXIF 2.32, section 4.6.4: how the camera was held, 1 (upright) to 8


def decode(
    data: bytes,
    *,
    min_width: int | None = None,
    min_height: int | None = None,
    fast: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """The pixels of an image file, uint8 ``(height, width, 3)``, RGB, upright.

    JPEG, PNG, WebP and GIF (its first frame), told apart by content. Greyscale gets three equal channels, 16 bits keep
    the upper eight, CMYK and palettes become RGB, what is transparent lies over white, and EXIF's orientation is
    applied where it stands before the pixels. Nothing is done about colour profiles.

    With ``min_width`` and ``min_height`` a JPEG may come at a smaller scale, one half, quarter or eighth, decoded in
    less time: the smallest at which it is at least that wide and high (as displayed), and full size where none is.
    Other formats, and CMYK JPEGs, come at full size. ``fast`` decodes a JPEG with a less exact transform, and colours
    that are not interpolated.

    Raises ImageError (a ValueError) for no bytes, another format, a file that is cut off or damaged, and an image with
    more than ``max_pixels`` pixels, of which none is decoded.
    """
    kind = _kind(data)
    with _Damage(kind):
        size = _jpeg_size(data) if kind == "JPEG" else None
        if size is not None:
            check_pixels(*size, max_pixels)
            return _decode_jpeg(data, size, (min_width, min_height), fast)
        with _PLUGINS[kind](io.BytesIO(data)) as image:
            check_pixels(*image.size, max_pixels)
            orientation = _orientation(image)
            return _upright(_rgb(image), orientation)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an image file, as displayed. The file's beginning is enough if it holds the header.

    Raises ImageError as ``decode`` does, also for a beginning that is too short.
    """
    kind = _kind(data)
    with _Damage(kind):
        size = _jpeg_size(data) if kind == "JPEG" and b"Exif\0\0" not in data else None
        if size is not None:
            return size
        with _PLUGINS[kind](io.BytesIO(data)) as image:
            (width, height), orientation = image.size, _orientation(image)
    return (height, width) if orientation >= 5 else (width, height)


def looks_whole(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes ends as its format says; one that does not may be cut off."""
    match _kind(head):
        case "JPEG":
            return b"\xff\xd9" in tail
        case "PNG":
            return b"IEND" in tail
        case "WebP":
            return int.from_bytes(head[4:8], "little") + 8 <= size
        case _:
            return tail.rstrip(b"\0").endswith(b";")


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError if an image has more than ``max_pixels`` pixels."""
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} = {width * height:,} pixels, more than max_pixels={max_pixels}. Scale it down, or "
            "give a larger max_pixels= if you trust it."
        )


class _Damage:
    """Whatever a decoder raises about somebody's bytes becomes an ImageError."""

    def __init__(self, kind: str):
        self.kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # Damaged files make Pillow raise OSError, SyntaxError, struct.error, IndexError, EOFError and others.
        if isinstance(error, Exception) and not isinstance(error, ImageError | MemoryError):
            raise ImageError(f"a {self.kind} that is cut off or damaged ({error})") from error


def _kind(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if not data:
        raise ImageError("no bytes, expected a JPEG, PNG, WebP or GIF")
    raise ImageError(f"not a JPEG, PNG, WebP or GIF; it begins with {data[:8]!r}")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as stored; None for what is left to Pillow: CMYK, rare subsampling, and damage."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError is what it raises of a subsampling that it has no name for
        return None
    return None if colours in ("CMYK", "YCCK") else (width, height)


def _decode_jpeg(data: bytes, size: tuple[int, int], least: tuple[int | None, int | None], fast: bool) -> np.ndarray:
    """``size`` is the file's, ``least`` what is asked for as displayed; each is (width, height)."""
    orientation = _jpeg_orientation(data)
    width, height = (bound or 0 for bound in (least[::-1] if orientation >= 5 else least))
    scaled = _jpeg_scaled(size, width, height) if width or height else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, **scaled, fastdct=fast, fastupsample=fast)
    except ValueError:
        # Strict about what libjpeg only warns of. Pillow refuses a file that is cut off and takes stray bytes.
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            pixels = _rgb(image)
    return _upright(pixels, orientation)


def _jpeg_scaled(size: tuple[int, int], min_width: int, min_height: int) -> dict[str, int]:
    """The bounds that make simplejpeg decode at one of the scales that are faster than full size.

    libjpeg-turbo has vector code for halves, quarters and eighths; 500 x 375 take 0.48, 0.44 and 0.38 ms for 0.63 at
    full size, but 0.74 at three eighths, 0.85 at five and 1.2 at six and seven (AMD EPYC, one core).
    """
    for divisor in (8, 4, 2):
        width, height = (-(-length // divisor) for length in size)
        if width >= min_width and height >= min_height:
            return {"min_width": width, "min_height": height}
    return {}


def _rgb(image: Image.Image) -> np.ndarray:
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
        grey = (np.asarray(image).astype(np.int32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.new("RGBA", over.size, "white")
        image.alpha_composite(over)
    return np.array(image.convert("RGB"))


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0\0" not in _jpeg_header(data):
        return 1
    with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
        return _orientation(image)


def _jpeg_header(data: bytes) -> bytes:
    """What stands before the pixels. Segment by segment (ITU T.81, annex B), as the pixels are the most of a file."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        filling = data[place + 1 : place + 2] == b"\xff"
        place += 1 if filling else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data[:place]


def _orientation(image: Image.Image) -> int:
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF: the pixels may well be whole
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
