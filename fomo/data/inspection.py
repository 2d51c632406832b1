"""What is in a data set, and what is wrong with it: damage, duplicates, leaks into the test split, conflicts."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fomo.config import some
from fomo.data.dataset import Dataset
from fomo.data.datasets import load_dataset
from fomo.data.folders import said
from fomo.data.images import for_each, to_pixels
from fomo.data.look import HASH_SIZE, look, oddities
from fomo.data.survey import Survey, survey
from fomo.data.tables import HIDDEN
from fomo.data.twins import digest
from fomo.paths import named, runs_folder
from fomo.storage import read_json, read_table, write_json, write_table

NEAR = 6  # bits that may differ between two pictures of the same
MANY = 0.01  # of the test images: so many near twins in train are more than chance


@dataclass(frozen=True)
class Inspection:
    """A data set looked over: its `survey`; `images` (a row an image: file, split, label, group, and what `look` says
    of it) and `pairs`, the near duplicates of a test image in train (test, train: rows of `images`)."""

    dataset: Dataset
    survey: Survey
    images: pd.DataFrame
    pairs: pd.DataFrame

    def counts(self) -> pd.DataFrame:
        """Images of each class (rows) in each split."""
        shown = self.images[self.images["label"] != HIDDEN]
        table = shown.groupby(["label", "split"]).size().unstack(fill_value=0)
        table = table.reindex(range(len(self.dataset.classes)), fill_value=0)
        return table.set_axis(self.dataset.classes)[[split for split in ("train", "test") if split in table]]

    def conflicts(self) -> pd.DataFrame:
        """The images that are byte-identical to one with another label, twins beside each other."""
        known = self.images[(self.images["label"] != HIDDEN) & self.images["digest"].notna()]
        return known[known.groupby("digest")["label"].transform("nunique") > 1].sort_values(["digest", "file"])

    def findings(self) -> pd.DataFrame:
        """One row for each thing looked for: finding, count, examples or details."""
        train, test, images = self._split("train"), self._split("test"), self.images
        damaged = images[images["reason"].notna()]
        twins = test[test["digest"].isin(set(train["digest"].dropna()))]
        counts = self.counts()["train"]
        sizes = images[["width", "height"]].dropna().astype(int).drop_duplicates()
        conflicts = self.conflicts()
        rows = [
            ("train images", len(train), ""),
            ("test images", len(test), "labels hidden" if (test["label"] == HIDDEN).all() else ""),
            (
                "classes",
                len(counts),
                f"{counts.min()} ({counts.idxmin()}) to {counts.max()} ({counts.idxmax()}) in train",
            ),
            (
                "sizes",
                len(sizes),
                " to ".join(f"{w} x {h}" for w, h in (sizes.min(), sizes.max())) if len(sizes) else "",
            ),
            ("modes", images["mode"].nunique(), ", ".join(sorted(images["mode"].dropna().unique()))),
            (
                "unreadable images",
                len(damaged),
                some([f"{f} ({r})" for f, r in zip(damaged["file"], damaged["reason"], strict=True)]),
            ),
            (
                "train images byte-identical to another",
                int(_repeated(train).sum()),
                some(list(train["file"][_repeated(train)])),
            ),
            (
                "test images byte-identical to another",
                int(_repeated(test).sum()),
                some(list(test["file"][_repeated(test)])),
            ),
            ("test images byte-identical to a train image", len(twins), some(list(twins["file"]))),
            ("identical images with conflicting labels", conflicts["digest"].nunique(), some(list(conflicts["file"]))),
            ("train images nearly identical to another", len(_alike(train)), some(list(_alike(train)["file"]))),
            ("test images nearly identical to another", len(_alike(test)), some(list(_alike(test)["file"]))),
            ("test images nearly identical to a train image", self.pairs["test"].nunique(), self._example()),
        ]
        if "group" in images:
            straddling = set(train["group"]) & set(test["group"])
            rows += [
                ("groups that straddle train and test", len(straddling), some(sorted(straddling))),
                ("test images of such a group", int(test["group"].isin(straddling).sum()), ""),
                ("train images of such a group", int(train["group"].isin(straddling).sum()), ""),
            ]
        left_out = self.dataset.left_out
        rows += [("files left out", len(left_out), some(said(left_out)))] * bool(len(left_out))
        return pd.DataFrame([*rows, *oddities(images)], columns=["finding", "count", "details"])

    def examples(self) -> tuple[np.ndarray, list[str]]:
        """(pixels, titles) of six pairs that should not be: conflicting labels first, then twins across the splits,
        then near twins. Where there are none, of some train images."""
        conflicts = self.conflicts().groupby("digest")
        chosen = [list(rows.drop_duplicates("label").index[:2]) for _, rows in conflicts]
        known = self.images[self.images["phash"].notna()]
        for _, rows in known[known.groupby("digest")["split"].transform("nunique") > 1].groupby("digest"):
            chosen.append(list(rows.drop_duplicates("split").index[:2]))
        chosen += [[pair.test, pair.train] for pair in self.pairs.itertuples()]
        chosen = chosen[:6] or [list(known.index[known["split"] == "train"][:12])]
        rows = self.images.loc[[row for pair in chosen for row in pair]]
        names = ["?" if label == HIDDEN else self.dataset.classes[label] for label in rows["label"]]
        titles = [f"{split}\n{name}" for split, name in zip(rows["split"], names, strict=True)]
        options = {"image_size": 96, "channels": 3, "ranges": self.survey.ranges}
        return np.stack([to_pixels(self.dataset.source.open(file), **options) for file in rows["file"]]), titles

    def verdict(self) -> str:
        """One line: what to know before a number of this data set is believed."""
        found = self.findings().set_index("finding")["count"]
        counts = self.counts()["train"]
        leaked = len(leaks(self.images, into="train"))
        words = []
        if found["unreadable images"]:
            words.append(f"{found['unreadable images']} images cannot be read (on_bad='skip' leaves them out)")
        if leaked:
            words.append(
                f"{leaked} test images are also in train, as they are or as another picture of the same thing, so test "
                "scores will flatter (on_leak='drop' leaves their train images out)"
            )
        if found["test images nearly identical to a train image"] > MANY * found["test images"]:
            words.append(
                f"{found['test images nearly identical to a train image']} test images are nearly identical to a train "
                "image; if these are frames of one film, or a picture stored anew, test scores will flatter, unless a "
                "table names their groups (columns='file:label:group')"
            )
        if found["identical images with conflicting labels"]:
            words.append(f"{found['identical images with conflicting labels']} images occur with conflicting labels")
        if counts.max() > 3 * counts.min():
            words.append(f"the classes are unbalanced, {counts.max()} to {counts.min()}: read macro F1, not accuracy")
        words += [f"{count} {finding}: {details}" for finding, count, details in oddities(self.images)]
        words += [*self.survey.notes(), *self.dataset.notes]
        return f"{self.dataset.place}: " + ("; ".join(words) or "nothing was found") + "."

    def _split(self, name: str) -> pd.DataFrame:
        return self.images[self.images["split"] == name]

    def _example(self) -> str:
        pairs = self.pairs.head(2).itertuples()
        return some([f"{self.images['file'][pair.test]} and {self.images['file'][pair.train]}" for pair in pairs])


def leaks(images: pd.DataFrame, into: str = "test") -> pd.DataFrame:
    """(file, reason) of the train images that show what a test image shows: the same bytes, or the same group.

    With `into="train"`, of the test images that show what a train image shows. `images`: file, split, digest, maybe
    group.
    """
    other = images[images["split"] == into]
    own = images[images["split"] == {"test": "train", "train": "test"}[into]]
    same = own["digest"].notna() & own["digest"].isin(set(other["digest"]))
    found = own[["file"]].assign(reason=np.where(same, f"byte-identical to an image of {into}", ""))
    if "group" in images:
        related = own["group"].isin(set(other["group"])) & ~same
        found.loc[related, "reason"] = f"of a group that is also in {into}"
    return found[found["reason"] != ""].reset_index(drop=True)


def digests(dataset: Dataset) -> pd.DataFrame:
    """The images of both splits (file, split, digest of their bytes, maybe group)."""

    def digest_of(file: str) -> str | None:
        try:
            return digest(dataset.source.content(file))
        except OSError:
            return None  # what is wrong with it is said when it is decoded

    images = both_splits(dataset)
    return images.assign(digest=list(for_each(digest_of, list(images["file"]), "looking for leaks")))


def both_splits(dataset: Dataset) -> pd.DataFrame:
    tables = {"train": dataset.train, "test": dataset.test()}
    return pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)


def _repeated(images: pd.DataFrame) -> pd.Series:
    return images["digest"].notna() & images["digest"].duplicated(keep=False)


def inspect(dataset: str | Dataset, columns: str = "", on_rare: str = "refuse") -> Inspection:
    """The `Inspection` of a data set (a name, a path, read as `load_dataset` does; or loaded). All images are read
    once; the result is stored."""
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(named(dataset), columns, on_rare)
    images = both_splits(dataset)
    folder = place(dataset)
    if not (folder / "survey.json").exists():
        found = survey(dataset)
        facts = for_each(lambda file: look(dataset, file, found.ranges), list(images["file"]), "inspecting")
        seen = pd.DataFrame(facts)
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "images.csv", seen)
        write_table(folder / "pairs.csv", near_pairs(images.join(seen)))
        write_json(folder / "survey.json", asdict(found))
    found, seen = Survey(**read_json(folder / "survey.json")), images.join(read_table(folder / "images.csv"))
    return Inspection(dataset, found, seen, read_table(folder / "pairs.csv").astype(int))


def place(dataset: Dataset) -> Path:
    """The folder of the `Inspection` of a data set, where it is stored."""
    return runs_folder(dataset.name) / f"inspection-{dataset.fingerprint()}-{dataset.fingerprint('test')}"


def near_pairs(images: pd.DataFrame) -> pd.DataFrame:
    """(test, train): rows of `images` whose perceptual hashes differ in at most `NEAR` bits, but whose bytes differ."""
    known = images[telling(images["phash"])]
    if known.empty:
        return pd.DataFrame({"test": [], "train": []}, dtype=int)
    bits = np.frombuffer(bytes.fromhex("".join(known["phash"])), np.uint64).reshape(len(known), -1)
    test, train = (np.flatnonzero(known["split"] == split) for split in ("test", "train"))
    pairs = []
    for start in range(0, len(test), 64):
        block = test[start : start + 64]
        distance = np.bitwise_count(bits[block][:, None] ^ bits[train][None]).sum(axis=2, dtype=np.uint16)
        rows, columns = np.nonzero(distance <= NEAR)
        pairs.append(np.stack([known.index[block[rows]], known.index[train[columns]]], axis=1))
    pairs = pd.DataFrame(np.concatenate([np.empty((0, 2), int), *pairs]), columns=["test", "train"])
    digest = images["digest"].to_numpy()
    return pairs[digest[pairs["test"]] != digest[pairs["train"]]].reset_index(drop=True)


def _alike(images: pd.DataFrame) -> pd.DataFrame:
    """The images that share their perceptual hash with one of other bytes."""
    known = images[telling(images["phash"])]
    return known[known.groupby("phash")["digest"].transform("nunique") > 1].sort_values(["phash", "file"])


def telling(hashes: pd.Series) -> pd.Series:
    """Which perceptual hashes say something: those of flat images, almost all zeros or ones, are all alike."""
    ones = hashes.map(lambda text: int(text, 16).bit_count(), na_action="ignore")
    return ones.between(2 * NEAR, HASH_SIZE**2 - 2 * NEAR, inclusive="neither")
