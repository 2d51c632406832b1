"""What one image is, and what is odd about it beside the others."""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image

from fomo.config import some
from fomo.data.dataset import Dataset
from fomo.data.images import as_seen, reason
from fomo.data.numbers import COLOUR, kind_of, values
from fomo.data.twins import digest

HASH_SIZE = 16  # 256 bits; with 64, things that merely look alike get the same hash
FACTS = (
    *("width", "height", "mode", "digest", "phash", "reason"),
    *("flat", "ends", "missing", "pages", "unseen"),
)
CLIPPED, USUAL = 0.3, 0.05  # share at an end of the range of a clipped image, and at most of a typical one
OBLONG = 1.2  # aspect from which on a crop to a square is worth a word
SAMPLES = 277  # a tag of a TIFF: its channels


def look(dataset: Dataset, file: str, ranges: dict) -> dict:
    """What one image is: width, height, mode (or the kind of its numbers), digest of its bytes, perceptual hash,
    whether it is `flat` (one colour), the share of it that is black or that is white (`ends`, the larger one), numbers
    that are none (`missing`), `pages`, and channels that are not looked at (`unseen`); or the reason it cannot be read.
    """
    facts = dict.fromkeys(FACTS)
    try:
        facts["digest"] = digest(dataset.source.content(file))
        with dataset.source.open(file) as image:
            kind = kind_of(image)
            facts |= {"width": image.width, "height": image.height, "mode": kind or image.mode}
            facts |= {"pages": _pages(image), "unseen": _unseen(image)}
            seen = as_seen(image, ranges)
            facts["missing"] = int(np.isnan(values(image, kind)).sum()) if kind not in (None, COLOUR) else 0
        counts = np.reshape(seen.histogram(), (-1, 256))
        facts["flat"] = int((counts > 0).sum() == len(counts))
        facts["ends"] = float(counts[:, [0, 255]].sum(axis=0).max() / counts.sum())
        facts["phash"] = picture_hash(seen)
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        facts |= {"reason": reason(error), "digest": None, "phash": None}
    return facts


def picture_hash(image: Image.Image) -> str:
    """The perceptual hash of an image: whether it gets brighter from left to right, at `HASH_SIZE`**2 places."""
    return str(imagehash.dhash(image, HASH_SIZE))


def _pages(image: Image.Image) -> int:
    """The pages or frames of a file. What a camera adds to a photograph (MPO) counts for none."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # of a later page; the first may be whole
        return 1


def _unseen(image: Image.Image) -> int:
    """The channels of a file that Pillow leaves out."""
    return max(0, getattr(image, "tag_v2", {}).get(SAMPLES, 0) - len(image.getbands()))


def oddities(images: pd.DataFrame) -> list[tuple[str, int, str]]:
    """(finding, count, details) of what is odd about some of the `images`, as `look` saw them; nothing of what is
    not."""
    seen = images[images["reason"].isna()]
    if seen.empty:
        return []
    flat, usual = seen["flat"] == 1, seen["mode"].mode()[0]
    clipped = (seen["ends"] >= CLIPPED) & ~flat & (seen["ends"].median() <= USUAL)
    sides = seen[["width", "height"]].astype(float)
    aspects = sides.max(axis=1) / sides.min(axis=1)
    aspect, pages, unseen = aspects.median(), seen["pages"].max(), seen["unseen"].max()
    found = [
        ("constant images, of one colour only", flat, ""),
        ("images with numbers that are none (NaN, infinite), seen as black", seen["missing"] > 0, ""),
        ("images that are clipped, unlike the rest", clipped, f"{CLIPPED:.0%} or more of them black or white: "),
        ("images of another kind than most", seen["mode"] != usual, f"most are {usual}: "),
        ("images with pages that are not looked at", seen["pages"] > 1, f"all but the first of up to {pages:.0f}: "),
        ("images with channels that are not looked at", seen["unseen"] > 0, f"up to {unseen:.0f}: "),
    ]
    rows = []
    for finding, which, text in found:
        rows.append((finding, int(which.sum()), text + some(list(seen["file"][which]))))
    if aspect > OBLONG:
        cut = f"fit='crop' cuts away {1 - 1 / aspect:.0%} of a typical one, fit='squish' or 'pad' nothing"
        rows.append(("images that are no squares", int((aspects > OBLONG).sum()), cut))
    return [row for row in rows if row[1]]
