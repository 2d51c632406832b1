import numpy as np
import pandas as pd
import pytest

from fomo.data.division import divide, sample, together

GOLDEN = ["016.png", "020.png", "027.png", "084.png", "091.png", "109.png", "111.png"]
TABLE = pd.DataFrame(
    {"file": [f"{number:03}.png" for number in range(112)], "label": [0] * 60 + [1] * 43 + [2] * 7 + [3] * 2}
)


def test_division_is_stratified():
    assert TABLE[divide(TABLE, 0.2, seed=0)]["label"].value_counts(sort=False).tolist() == [12, 9, 1, 1]


def test_division_tells_of_every_row_in_its_order():
    part = divide(TABLE, 0.2, seed=0)
    assert part.dtype == bool
    assert part.index.equals(TABLE.index)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.99])
def test_each_class_has_an_image_on_either_side(share):
    assert (TABLE.groupby(divide(TABLE, share, seed=0))["label"].nunique() == 4).all()


def test_division_is_the_same_for_the_same_seed_whatever_the_order_of_the_files():
    shuffled = TABLE.sample(frac=1, random_state=1)
    parts = [set(table["file"][divide(table, 0.2, seed=3)]) for table in (TABLE, shuffled)]
    assert parts[0] == parts[1]


def test_division_is_this_one_on_every_machine():
    assert TABLE["file"][divide(TABLE, 0.05, seed=0)].tolist() == GOLDEN


def test_another_seed_divides_in_another_way():
    assert (divide(TABLE, 0.2, seed=0) != divide(TABLE, 0.2, seed=1)).any()


def grouped(seed: int, classes: int = 3) -> pd.DataFrame:
    """A table of lesions: each is of one class and has one to five images."""
    rng = np.random.default_rng(seed)
    rows = []
    for lesion in range(30):
        rows += [{"label": lesion % classes, "group": f"lesion{lesion}"}] * rng.integers(1, 6)
    table = pd.DataFrame(rows).sample(frac=1, random_state=seed, ignore_index=True)
    return table.assign(file=[f"{number:03}.png" for number in rng.permutation(len(table))])


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_classes_keep_their_shares(seed):
    table = grouped(seed)
    part = divide(table, 0.2, seed)
    assert (part.groupby(table["group"]).nunique() == 1).all()
    assert part.groupby(table["label"]).mean().between(0.1, 0.35).all()


def test_division_of_groups_is_the_same_whatever_the_order_of_the_files():
    table = grouped(0)
    shuffled = table.sample(frac=1, random_state=1)
    assert set(table["file"][divide(table, 0.2, 0)]) == set(shuffled["file"][divide(shuffled, 0.2, 0)])


def test_large_group_is_not_most_of_the_smaller_part():
    table = pd.DataFrame({"file": [f"{number:03}" for number in range(200)], "label": [0, 1] * 100})
    table["group"] = table["file"]
    table.loc[:149, "group"] = ["left", "right"] * 75  # each most of its class
    for seed in range(5):
        chosen = divide(table, 0.2, seed)
        assert chosen.groupby(table["label"]).sum().tolist() == [20, 20]


def test_large_groups_are_taken_where_there_are_no_small_ones():
    table = pd.DataFrame({"file": [f"{number:03}" for number in range(40)], "label": [0, 1] * 20})
    table["group"] = table["label"] * 2 + table.index // 20
    assert divide(table, 0.1, 0).groupby(table["label"]).sum().tolist() == [10, 10]


def test_large_group_of_several_classes_is_not_most_of_the_smaller_part():
    table = pd.DataFrame({"file": [f"{number:03}" for number in range(110)], "label": [0] * 10 + [1] * 100})
    table["group"] = table["file"].where((table.index > 1) & (table.index < 85), "large")
    table.loc[table.index >= 35, "group"] = "large"
    for seed in range(20):
        assert divide(table, 0.2, seed).groupby(table["label"]).sum().tolist() == [2, 20]


def test_large_group_is_chosen_where_a_class_would_else_have_one_side():
    table = pd.DataFrame({"file": [f"{number:03}" for number in range(30)], "label": [0] * 14 + [1] * 16})
    table["group"] = table["file"]
    table.loc[13:14, "group"] = "shared"
    table.loc[15:, "group"] = "large"
    for seed in range(6):
        sides = divide(table, 0.2, seed).groupby(table["label"]).nunique()
        assert sides[0] == 2
    assert sum(divide(table, 0.2, seed)[14:].nunique() == 2 for seed in range(6)) >= 4


def test_sample_has_an_image_of_each_class_even_of_one_that_has_only_that():
    table = pd.DataFrame({"file": list("abcdefghi"), "label": [0] + [1] * 4 + [2] * 4})
    assert sample(table, 0.5, 0).groupby(table["label"]).sum().tolist() == [1, 2, 2]


def test_groups_of_several_classes_stay_together():
    table = grouped(0).assign(label=lambda table: np.arange(len(table)) % 3)
    part = divide(table, 0.3, seed=0)
    assert (part.groupby(table["group"]).nunique() == 1).all()
    assert (table.groupby(part)["label"].nunique() == 3).all()


def test_class_of_a_single_group_is_kept_for_training():
    table = pd.DataFrame({"file": list("abcdef"), "label": [0, 0, 0, 1, 1, 1], "group": list("xyzwww")})
    assert not divide(table, 0.4, seed=0)[table["label"] == 1].any()


NO_DIGESTS = pd.Series(None, index=TABLE.index, dtype=object)


def test_images_without_twins_are_in_no_group():
    assert together(TABLE, NO_DIGESTS, 0.2, seed=0).equals(TABLE["file"])
    assert together(TABLE, TABLE["file"].map(hash), 0.2, seed=0).equals(TABLE["file"])


@pytest.mark.parametrize("seed", range(5))
def test_twins_stay_on_one_side(seed):
    """Each image of the two large classes is there three times."""
    digests = (TABLE.index // 3).astype(str).to_series(TABLE.index).mask(TABLE["label"] > 1, None)
    chosen = divide(TABLE.assign(group=together(TABLE, digests, 0.2, seed)), 0.2, seed)
    assert (chosen.groupby(digests).nunique() == 1).all()
    assert chosen.groupby(TABLE["label"]).sum().between([9, 6, 1, 1], [15, 12, 1, 1]).all()


def test_twins_tie_their_groups_to_each_other():
    """A chain: of two groups an image of each is the same, and one of the second is the same as one of no group."""
    groups = TABLE["file"].mask(TABLE.index < 2, "a").mask(TABLE.index.isin([2, 3]), "b")
    digests = NO_DIGESTS.mask(TABLE.index.isin([1, 2]), "x").mask(TABLE.index.isin([3, 4]), "y")
    found = together(TABLE.assign(group=groups), digests, 0.2, seed=0)
    assert found[:6].tolist() == [*["000.png"] * 5, "005.png"]


@pytest.mark.parametrize("seed", range(6))
def test_twins_are_divided_where_a_class_would_be_short_on_a_side(seed):
    """All images of a class, or two of three."""
    table = pd.DataFrame({"file": [f"{number}.png" for number in range(13)], "label": [0] * 8 + [1] * 2 + [2] * 3})
    digests = pd.Series([*"abcdefg", "b", *"xxyyz"], dtype=object)
    chosen = divide(table.assign(group=together(table, digests, 0.2, seed)), 0.2, seed)
    assert chosen[1] == chosen[7]
    assert chosen.groupby(table["label"]).sum().tolist()[1:] == [1, 1]
