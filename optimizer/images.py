"""Images as arrays: read, resized and cropped as torchvision does with Pillow, so that an engine sees what training saw."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8 bits in that many channels."""

_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of more than 8 bits a channel, which Pillow clips to 255 where it converts them."""

_ORIENTATION = 0x0112
_UPRIGHT = (None, 1)

_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise for files that are cut off or made up."""


@dataclass(frozen=True)
class ImageHead:
    """What an image file says before its pixels: Pillow's mode, and whether EXIF asks viewers to turn it."""

    mode: str
    turned: bool


def image_head(path: Path) -> ImageHead:
    """The head of an image file, without decoding its pixels.

    Raises:
        InputError: not an image, larger than Pillow's limit against decompression bombs, or of more than 8 bits a channel.
    """

    def read(image: Image) -> ImageHead:
        exif = _pillow().Image.getexif(image)  # of the base class: a PNG's own decodes all pixels to look for one behind them
        return ImageHead(image.mode, exif.get(_ORIENTATION) not in _UPRIGHT)

    head = _opened(path, read)
    if head.mode in _DEEP:
        raise InputError(
            f"{path.name} has more than 8 bits a channel (Pillow's mode {head.mode}).",
            "Convert it to 8 bits as training did, or give the numbers as .npy.",
        )
    return head


def image_from_file(path: Path, mode: str) -> NDArray[np.uint8]:
    """The pixels, uint8 of shape (height, width, channels), converted to `mode` of MODES and not turned as EXIF asks.

    Raises:
        InputError: not an image, or damaged.
    """

    def read(image: Image) -> NDArray[np.uint8]:
        pixels = np.asarray(image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1)

    return _opened(path, read)


def _opened(path: Path, read: Callable[[Image], T]) -> T:
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks about odd metadata; what can't be read is refused below
            with pillow.open(path) as image:
                return read(image)
    except (*_DAMAGED, pillow.DecompressionBombError) as error:
        raise InputError(f"{path.name} is not a readable image: {error}.", "Remove the file, or write it again.") from None


def sized(images: NDArray[Any], layout: str, resize: tuple[int, ...], crop: tuple[int, ...]) -> NDArray[Any]:
    """A batch of images with the axes `layout`, resized and then cropped at the centre: torchvision's Resize and CenterCrop.

    `resize` is (shorter side,) or (height, width): Pillow's bilinear filter, which averages where it shrinks (antialias).  uint8
    stays uint8; other numbers become float32.  `crop` is (height, width); both may be empty.

    Raises:
        InputError: the axes are not as `layout` says, or an image is smaller than the crop.
    """
    if len(layout) != images.ndim:
        raise InputError(f"The layout {layout} has {len(layout)} axes, the images have shape {images.shape}.", "The batch axis counts too.")
    height, width = layout.index("H"), layout.index("W")
    planes = np.moveaxis(images, (height, width), (-2, -1))
    if resize:
        planes = _resized(planes, _wanted(planes.shape[-2:], resize))
    if crop:
        planes = _cropped(planes, crop)
    return np.ascontiguousarray(np.moveaxis(planes, (-2, -1), (height, width)))


def _wanted(size: tuple[int, ...], resize: tuple[int, ...]) -> tuple[int, int]:
    """Height and width after `resize`; the longer side is rounded down, as torchvision does."""
    if len(resize) == 2:
        return resize[0], resize[1]
    (height, width), (short,) = size, resize
    return (short, short * width // height) if height <= width else (short * height // width, short)


def _resized(planes: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    pillow = _pillow()
    numbers = planes if planes.dtype == np.uint8 else planes.astype(np.float32)
    flat = numbers.reshape(-1, *numbers.shape[-2:])
    resized = [
        np.asarray(pillow.fromarray(np.ascontiguousarray(plane)).resize((size[1], size[0]), pillow.Resampling.BILINEAR)) for plane in flat
    ]
    return np.stack(resized).reshape(*numbers.shape[:-2], *size)


def _cropped(planes: NDArray[Any], crop: tuple[int, ...]) -> NDArray[Any]:
    height, width = planes.shape[-2:]
    if height < crop[0] or width < crop[1]:
        raise InputError(
            f"An image of {height}x{width} is smaller than the crop of {crop[0]}x{crop[1]}.",
            "Set resize to at least that in optimize.toml.",
        )
    top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
    return planes[..., top : top + crop[0], left : left + crop[1]]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UnavailableError(
            "Reading and resizing images needs Pillow, which is not installed.", "pip install 'optimize[images]'"
        ) from None
    return Image
