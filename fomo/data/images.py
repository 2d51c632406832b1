"""Image files as a person sees them, decoded once into an array on disk."""

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.transforms.v2.functional import center_crop, resize

from fomo.config import UserError
from fomo.data.dataset import Dataset
from fomo.data.numbers import eight_bits
from fomo.progress import Bar
from fomo.storage import new_array, release

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is not yet a bomb; twice as large is refused


def as_seen(image: Image.Image, ranges: dict | None = None) -> Image.Image:
    """The image in mode L or RGB: upright, its first frame, what is transparent on white; numbers of other than 8 bits
    by their range (`survey.Survey`). Raises `UserError` where that is not known."""
    image = eight_bits(image, ranges or {})
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_pixels(
    image: Image.Image,
    image_size: int,
    channels: int,
    crop: float = 0.875,
    fit: str = "crop",
    ranges: dict | None = None,
) -> np.ndarray:
    """Resize and CenterCrop of an image as seen, as uint8 (channels, side, side); channels is 1 (grey) or 3.

    `fit` says what becomes a square of `image_size` / `crop` pixels: the middle of the image (crop), all of it,
    distorted (squish), or all of it between black bars (pad). The middle `crop` of that square's side is kept: 0.875
    are the report's Resize(256), CenterCrop(224).
    """
    image = as_seen(image, ranges).convert("L" if channels == 1 else "RGB")
    resized = FITS[fit](image, round(image_size / crop))
    pixels = np.asarray(center_crop(resized, [image_size]))  # what `_pad` leaves open is black
    return pixels.reshape(image_size, image_size, channels).transpose(2, 0, 1)


def _crop(image: Image.Image, side: int) -> Image.Image:
    """The image with its shorter side `side` pixels long, the longer one at most eight times that."""
    longest = 8 * min(image.size)  # what lies farther out is cropped anyway; resized first, it could fill the memory
    image = center_crop(image, [min(image.height, longest), min(image.width, longest)])
    return resize(image, [side], antialias=True)


def _squish(image: Image.Image, side: int) -> Image.Image:
    """All of the image in a square of `side` pixels."""
    shrunk = resize(image, [min(image.height, side), min(image.width, side)], antialias=True)
    return resize(shrunk, [side, side], antialias=True)  # at once, a very high image would first become a wide one, too


def _pad(image: Image.Image, side: int) -> Image.Image:
    """All of the image with its longer side `side` pixels long."""
    longest = max(image.size)
    lengths = [max(1, round(side * length / longest)) for length in (image.height, image.width)]
    return resize(image, lengths, antialias=True)


FITS = {"crop": _crop, "squish": _squish, "pad": _pad}


def for_each(function, items: Iterable, description: str = "", cores: int | None = None, ahead: int = 8):
    """Yields function(item) in order; all cores work, or so many, and at most `ahead` items for each of them and their
    results are held at a time. A bar shows how far it is, unless there is no `description`."""
    cores = cores or os.cpu_count()
    options = {"desc": description, "leave": False} if description else {"disable": True}
    total = len(items) if isinstance(items, Sized) else None
    with ThreadPoolExecutor(cores) as pool, Bar(total=total, **options) as bar:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead * cores:
                yield waiting.popleft().result()
                bar.update()
        for future in waiting:
            yield future.result()
            bar.update()


def batched(items: Iterable, size: int) -> Iterator[list]:
    """The items in lists of this size; the last may be shorter."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def store_pixels(
    dataset: Dataset,
    files: pd.Series,
    path: Path,
    image_size: int,
    description: str,
    channels: int,
    ranges: dict,
    crop: float = 0.875,
    fit: str = "crop",
) -> pd.DataFrame:
    """Stores `to_pixels` of `files` as uint8 (images, channels, side, side).

    This head of the transforms is the same in every epoch, so it is computed once. Returns the table (file, reason) of
    the images that cannot be decoded; their rows are left black.
    """

    def decode(file: str) -> np.ndarray | str:
        try:
            with dataset.source.open(file) as image:
                return to_pixels(image, image_size, channels, crop, fit, ranges)
        except Exception as error:  # a damaged file makes the decoders raise nearly anything
            return reason(error)

    files, damaged = list(files), []
    with new_array(path, (len(files), channels, image_size, image_size), np.uint8) as store:
        for row, pixels in enumerate(for_each(decode, files, description)):
            if isinstance(pixels, str):
                damaged.append({"file": files[row], "reason": pixels})
            else:
                store[row] = pixels
            if row % 256 == 255:
                release(store)
    return pd.DataFrame(damaged, columns=["file", "reason"])


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words, without the machine's paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or its header is damaged"
    return f"{type(error).__name__}: {error}"[:120]
