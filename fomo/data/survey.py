"""What has to be known of all train images before one is decoded: whether they are grey, what is black and white."""

from dataclasses import dataclass, field

from fomo.data.dataset import Dataset
from fomo.data.division import sample
from fomo.data.images import for_each
from fomo.data.numbers import COLOUR, ends, kind_of, range_from, values

SAMPLED = 256  # images of a kind of numbers, of which its range is found


@dataclass(frozen=True)
class Survey:
    """Whether all images are `grey`, and `ranges`: of each kind of numbers but 8 bits (`numbers.kind_of`), which number
    is seen as black and which as white, the same in all images."""

    grey: bool = False
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of the images as they are stored."""
        return 1 if self.grey else 3

    def notes(self) -> list[str]:
        """What there is to say about the numbers in the images."""
        return [
            f"{kind} images: {low:g} is seen as black and {high:g} as white, as found in train"
            for kind, (low, high) in self.ranges.items()
        ]


def survey(dataset: Dataset) -> Survey:
    """The `Survey` of a data set, of its train images alone. The headers of all are read, and some of them as a whole
    where they hold other numbers than 8 bits; which ones, is the same for all runs."""

    def look(file: str) -> tuple[str, bool]:
        try:
            with dataset.source.open(file) as image:
                kind = kind_of(image)
                return kind or "", image.mode in ("1", "L") or kind not in (None, COLOUR)
        except Exception:
            return "", True  # what is wrong with it is said when it is decoded

    def measure(file: str) -> tuple[float, float] | None:
        try:
            with dataset.source.open(file) as image:
                return ends(values(image, kind_of(image)))
        except Exception:
            return None

    seen = list(for_each(look, list(dataset.train["file"]), "looking at images"))
    table, ranges = dataset.train[["file", "label"]].assign(kind=[kind for kind, _ in seen]), {}
    for kind, images in table[table["kind"] != ""].groupby("kind"):
        chosen = images
        if len(images) > SAMPLED:
            chosen = images[sample(images, SAMPLED / len(images), seed=0)]
        found = [one for one in for_each(measure, list(chosen["file"]), f"measuring {kind}") if one]
        if found:
            ranges[kind] = range_from(found)
    return Survey(all(grey for _, grey in seen), ranges)
