"""The numbers that image files hold: 8 bits are seen as they are, all others by a range that is known beforehand."""

import numpy as np
from PIL import Image, ImageOps

from fomo.config import UserError

BITS, SAMPLE_FORMAT, NO_DATA = 258, 339, 42113  # tags of a TIFF
COLOUR = "uint16 colour"
FULL = (0, 65535)  # of `COLOUR`: what Pillow makes of 16 bits without being told a range
BEYOND = 1e30  # no measurement: files mark by such numbers where there is none
SCALES = (1, 255, 4095, 65535)  # that people store shades on
OTHER_ORDER = {"L": "B", "B": "L", "N": "B"}  # of the bytes of 16 bits, as Pillow's raw modes name it


def kind_of(image: Image.Image) -> str | None:
    """The kind of numbers of an image whose range has to be known, as numpy names it, or `COLOUR`; None: 8 bits."""
    tags = getattr(image, "tag_v2", {BITS: (32,), SAMPLE_FORMAT: (2,)})  # other files hold 32 bits where Pillow says I
    stored = f"{'' if tags.get(SAMPLE_FORMAT, (1,))[0] == 2 else 'u'}int{tags.get(BITS, (1,))[0]}"
    if image.mode == "L":
        return stored if stored == "int8" else None
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode == "I":
        return stored
    if image.mode == "F":
        return "float32"
    raws = [_raw(tile) for tile in getattr(image, "tile", [])]
    return COLOUR if raws and all(raw.startswith(("RGB;16", "RGBA;16", "RGBX;16")) for raw in raws) else None


def values(image: Image.Image, kind: str) -> np.ndarray:
    """The numbers of an upright image of a `kind`, as floats (height, width), of `COLOUR` (height, width, 3 or 4); NaN
    where there is none."""
    missing = getattr(image, "tag_v2", {}).get(NO_DATA)
    if kind == COLOUR:
        low = np.asarray(ImageOps.exif_transpose(_low_bytes(image)))
        return np.asarray(ImageOps.exif_transpose(image)) * np.float32(256) + low
    found = np.asarray(ImageOps.exif_transpose(image))
    if kind in ("int8", "uint32"):
        found = found.view(kind)
    return present(found, missing)


def present(array: np.ndarray, missing: str | None = None) -> np.ndarray:
    """The numbers as floats, NaN where there is none: what is infinite, nearly so, or the number `missing`."""
    found = array.astype(np.result_type(array.dtype, np.float32))
    found[~(np.abs(found) < BEYOND)] = np.nan
    if missing is not None:
        found[found == float(missing)] = np.nan
    return found


def shown(found: np.ndarray, low: float, high: float) -> np.ndarray:
    """`values` as uint8: `low` black, `high` white, what lies beyond them too, and black where there is no number. A
    fourth channel is the transparency, on a scale of its own."""
    scaled = ((found[..., :3] if found.ndim == 3 else found).clip(low, high) - low) * (255 / (high - low))
    scaled = np.nan_to_num(scaled.round()).astype(np.uint8)
    if found.ndim == 3 and found.shape[2] == 4:
        return np.concatenate([scaled, (found[..., 3:] // 256).astype(np.uint8)], axis=2)
    return scaled


def eight_bits(image: Image.Image, ranges: dict) -> Image.Image:
    """The image upright, its numbers 8 bits. Raises `UserError` where `ranges` has none for its kind."""
    kind = kind_of(image)
    if kind is None or (kind == COLOUR and tuple(ranges.get(kind, ())) == FULL):
        return ImageOps.exif_transpose(image)
    return Image.fromarray(shown(values(image, kind), *range_of(kind, ranges)))


def range_of(kind: str, ranges: dict) -> tuple[float, float]:
    """What of `ranges` is that of a kind. Raises `UserError` where there is none."""
    if kind not in ranges:
        known = ", ".join(["8 bits (uint8)", *ranges])
        raise UserError(f"holds {kind}, which no train image does, so black and white are not known; give {known}")
    return tuple(ranges[kind])


def ends(found: np.ndarray) -> tuple[float, float] | None:
    """The least and the largest of an image's `values`, but for a thousandth at either end; None if there is none."""
    found = found[..., :3][np.isfinite(found[..., :3])] if found.ndim == 3 else found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, 0.001, method="higher"), np.quantile(found, 0.999, method="lower")
    return float(low), float(max(low, high))


def range_from(found: list[tuple[float, float]]) -> tuple[float, float]:
    """The one range of images whose `ends` these are: it leaves out a hundredth of them at either end, of ten images
    one. Where it takes up more than half of a scale that people use, it is that scale.

    A defect of a few pixels, or of an image in a hundred, would else make all others black or white.
    """
    lows, highs = (np.sort(side) for side in zip(*found, strict=True))
    out = int(np.ceil(len(found) / 100)) if len(found) >= 10 else 0
    low, high = float(lows[out]), float(highs[-1 - out])
    for top in SCALES:
        if low >= 0 and top / 2 < high - low and high <= top:
            return 0.0, float(top)
    return low, high if high > low else low + 1


def _low_bytes(image: Image.Image) -> Image.Image:
    """The lower 8 of the 16 bits of a colour: Pillow reads the upper ones, and takes these for them where it is told
    the other order of bytes."""
    place = image.fp.tell()
    image.fp.seek(0)
    low = Image.open(image.fp)
    low.tile = [tile._replace(args=_other_order(tile)) for tile in low.tile]
    low.load()
    image.fp.seek(place)
    return low


def _other_order(tile) -> str | tuple:
    raw = _raw(tile)
    raw = raw[:-1] + OTHER_ORDER[raw[-1]]
    return raw if isinstance(tile.args, str) else (raw, *tile.args[1:])


def _raw(tile) -> str:
    """Pillow's raw mode of a part of a file: how its numbers are stored."""
    raw = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return raw if isinstance(raw, str) else ""
