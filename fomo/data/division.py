"""A table of images divided in two: stratified, seeded, groups kept together."""

import numpy as np
import pandas as pd

from fomo.data.dataset import FEWEST


def divide(table: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Which rows of `table` (file, label, maybe group) belong to the smaller part, about `share` of each class.

    The same for the same seed on every machine and for every order of the rows. Each class that has two images (or two
    groups of its own) has at least one on either side, which scikit-learn's stratified split does not grant to rare
    classes. Rows of one group stay together, and a group that would make more than twice the share of one of its
    classes stays on the larger side, unless that would leave a class with one side.
    """
    chosen = _divide(table, share, seed, limited=True)
    if _two_sided(table, chosen) < table["label"].nunique():
        others = _divide(table, share, seed, limited=False)
        chosen = others if _two_sided(table, others) > _two_sided(table, chosen) else chosen
    return chosen


def together(table: pd.DataFrame, digests: pd.Series, share: float, seed: int) -> pd.Series:
    """The groups by which `divide` keeps identical images on one side, too: those of the same `digests` (None: not
    known) and those of the same group are in one, which is called as its first file. The images of a class that would
    then be short on a side are in their own groups alone."""
    while True:
        joined = _joined(table, digests)
        side = divide(table.assign(group=joined), share, seed).groupby(table["label"])
        short = (side.transform("count") - side.transform("sum") < FEWEST) | ~side.transform("any")
        if not (short & digests.notna()).any():
            return joined
        digests = digests.mask(short)


def _joined(table: pd.DataFrame, digests: pd.Series) -> pd.Series:
    """The first of the files that each row is tied to, by groups and `digests` in any number of steps."""
    known = digests.where(digests.notna(), table["file"])
    ties = [known, table["group"]] if "group" in table else [known]
    places, files = pd.factorize(table["file"], sort=True)
    first, before = pd.Series(places, table.index), None
    while not first.equals(before):
        before = first
        for tie in ties:
            first = first.groupby(tie).transform("min")
    return pd.Series(files[first], table.index)


def _two_sided(table: pd.DataFrame, chosen: pd.Series) -> int:
    """How many classes have rows on both sides."""
    return int((chosen.groupby(table["label"]).nunique() == 2).sum())


def _divide(table: pd.DataFrame, share: float, seed: int, *, limited: bool) -> pd.Series:
    """As `divide`; unless `limited`, groups of any size are chosen."""
    ordered = table.sort_values("file")
    groups = ordered["group"] if "group" in ordered else ordered["file"]
    rng = np.random.default_rng(seed)
    sizes = {label: groups[rows.index].value_counts(sort=False) for label, rows in ordered.groupby("label", sort=True)}
    targets = {label: max(1, round(share * of.sum())) for label, of in sizes.items()}
    largest = {label: max(2 * targets[label], of.min()) for label, of in sizes.items()}
    parts: dict = {}  # of each group: how many of its rows each class has
    for label, of in sizes.items():
        for group, size in of.items():
            parts.setdefault(group, {})[label] = size
    counts, chosen, kept = dict.fromkeys(sizes, 0), set(), set()
    for label, of in sizes.items():
        members = list(of.index[rng.permutation(len(of))])
        for position, group in enumerate(members):
            last = position == len(members) - 1 and not kept.intersection(members)
            if group in chosen or group in kept:
                continue
            fits = not limited or all(counts[other] + size <= largest[other] for other, size in parts[group].items())
            if counts[label] < targets[label] and not last and fits:
                chosen.add(group)
                for other, size in parts[group].items():
                    counts[other] += size
            else:
                kept.add(group)
    return groups.isin(chosen).reindex(table.index)


def sample(table: pd.DataFrame, share: float, seed: int) -> pd.Series:
    """Which rows of `table` (file, label) are about `share` of each class, and at least one row of it."""
    chosen = divide(table, share, seed)
    missing = ~table["label"].isin(table["label"][chosen])
    return chosen | (missing & ~table["label"].duplicated())
