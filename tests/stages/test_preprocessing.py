import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

import fomo
from fomo.config import UserError
from fomo.data.datasets import load_dataset
from fomo.data.images import to_pixels
from fomo.stages.preprocessing import test_images as read_test_images


@pytest.fixture
def own_dataset(tmp_path):
    """A data set that the test may change."""
    return toys.write_dataset(tmp_path / "own", train=5, test=2)


def test_images_are_split_in_the_asked_shares(finished):
    images = fomo.preprocess(finished.run).images
    assert images.groupby(["label", "split"]).size().to_dict() == {
        (label, split): count for label in range(3) for split, count in {"train": 16, "validation": 4}.items()
    }


@pytest.mark.parametrize(("split", "rows"), [("train", 48), ("validation", 12)])
def test_part_gives_the_pixels_of_its_images(finished, dataset, split, rows):
    data = fomo.preprocess(finished.run)
    pixels, places, labels = data.part(split)
    files = data.images.loc[data.images["split"] == split, "file"].tolist()
    assert len(places) == len(labels) == len(files) == rows
    with Image.open(dataset / files[3]) as image:
        assert np.array_equal(pixels[places[3]], to_pixels(image, 32, 3))


def test_class_whose_groups_all_fall_to_one_side_is_refused(own_dataset):
    table = pd.read_csv(own_dataset / "train.csv", dtype=str)
    table.assign(group="all of one patient").to_csv(own_dataset / "train.csv", index=False)
    with pytest.raises(UserError, match="fall to one side of the split"):
        fomo.preprocess(toys.tiny_run(own_dataset))


def test_another_division_leaves_no_class_on_one_side(own_dataset):
    data = fomo.preprocess(toys.tiny_run(own_dataset))
    for seed in range(5):
        sides = data.divided(0.2, seed).images.groupby("label")["split"].nunique()
        assert (sides == 2).all()
    one = replace(data, images=data.images.assign(group="one patient"))
    pd.testing.assert_frame_equal(one.divided(0.2, 1).images, one.images)


def test_damaged_image_is_named_and_the_run_goes_on_once_it_is_repaired(own_dataset):
    run, image = toys.tiny_run(own_dataset), own_dataset / "images_train" / "004.png"
    content = image.read_bytes()
    image.write_bytes(content[:-300])
    with pytest.raises(UserError, match=r"cannot read images_train/004\.png"):
        fomo.preprocess(run)
    image.write_bytes(content)
    assert len(fomo.preprocess(toys.tiny_run(own_dataset)).pixels) == 15


def test_two_seeds_divide_train_and_validation_in_two_ways_but_have_one_test_split(tmp_path):
    folder = toys.write_class_folders(tmp_path / "folders")
    runs = [fomo.preprocess(toys.tiny_run(folder, seed=seed)) for seed in (0, 1)]
    validation = [set(data.images.loc[data.images["split"] == "validation", "file"]) for data in runs]
    assert validation[0] != validation[1]
    assert set(runs[0].images["file"]) == set(runs[1].images["file"])
    assert "there is no test split" in runs[0].notes[0]


def test_division_does_not_depend_on_the_order_of_the_table(own_dataset, tmp_path):
    before = fomo.preprocess(toys.tiny_run(own_dataset)).images[["file", "label", "split"]]
    pd.read_csv(own_dataset / "train.csv").iloc[::-1].to_csv(own_dataset / "train.csv", index=False)
    after = fomo.preprocess(toys.tiny_run(own_dataset, name="reversed"))
    pd.testing.assert_frame_equal(after.images[["file", "label", "split"]], before)


def test_groups_do_not_straddle_train_and_validation(own_dataset):
    group(own_dataset, [f"lesion {number // 2}" for number in range(15)], [f"x{number}" for number in range(6)])
    images = fomo.preprocess(toys.tiny_run(own_dataset)).images
    assert (images.groupby("group")["split"].nunique() == 1).all()
    assert set(images["split"]) == {"train", "validation"}


def test_rare_class_is_said(own_dataset):
    toys.write_csv(own_dataset, "train", [f"{n:03}.png" for n in range(14)], [0] * 6 + [1] * 6 + [2] * 2)
    data = fomo.preprocess(toys.tiny_run(own_dataset))
    assert data.images[data.images["label"] == 2]["split"].tolist() == ["train", "validation"]
    assert data.notes == ["so few images that one or two of them are the whole validation of: bottom"]


def test_twins_are_on_one_side_of_the_division_and_of_those_of_further_networks(own_dataset):
    for number in range(0, 14, 2):  # within their class, and from one to the next
        shutil.copy(own_dataset / f"images_train/{number:03}.png", own_dataset / f"images_train/{number + 1:03}.png")
    data = fomo.preprocess(toys.tiny_run(own_dataset))
    content = {file: (own_dataset / file).read_bytes() for file in data.images["file"]}
    for divided in (data, data.divided(0.3, seed=1), data.divided(0.3, seed=2)):
        images = divided.images.assign(content=divided.images["file"].map(content))
        assert (images.groupby("content")["split"].nunique() == 1).all()
    assert data.notes == []


def test_twins_on_both_sides_of_a_division_that_is_given_are_said(tmp_path):
    folder = toys.write_class_folders(tmp_path / "folder" / "train")
    shutil.copytree(folder, folder.parent / "val")
    shutil.copytree(folder, folder.parent / "test")
    assert "validation images are byte-identical to a train image" in "".join(
        fomo.preprocess(toys.tiny_run(folder.parent)).notes
    )


# ---- images that cannot be read


def damage(folder, count: int) -> set[str]:
    """Writes so many damaged images into the class folders; returns their names."""
    good = (folder / "top" / "000.png").read_bytes()
    contents = [b"", b"text", good[:50], good[:-200], good[:40] + bytes(20) + good[60:], b"\x89PNG", b"GIF89a"]
    names = {f"{toys.CLASSES[number % 3]}/{'ä猫я'[number % 3]}{number}.png" for number in range(count)}
    for number, name in enumerate(sorted(names)):
        if number % 8 == 7:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(contents[number % 8])
    return names


def test_thousand_damaged_images_are_one_error_that_lists_them_all(tmp_path):
    folder = toys.write_class_folders(tmp_path / "folders")
    names = damage(folder, 1000)
    run = toys.tiny_run(folder)
    with pytest.raises(UserError, match=r"cannot read .* and \d+ more of .*on_bad='skip'") as refusal:
        fomo.preprocess(run)
    listed = pd.read_csv(run.folder / "unreadable.csv")
    assert set(listed["file"]) == {name for name in names if (folder / name).is_file()}
    assert listed["reason"].str.len().between(5, 120).all()
    assert str(run.folder / "unreadable.csv") in str(refusal.value)


def test_thousand_damaged_images_are_left_out_and_the_good_ones_unharmed(tmp_path):
    folder = toys.write_class_folders(tmp_path / "folders")
    names = damage(folder, 1000)
    data = fomo.preprocess(toys.tiny_run(folder, on_bad="skip"))
    train = set(load_dataset(folder).train["file"])
    assert set(data.left_out["file"]) == names
    assert set(data.images["file"]) == train - names
    assert f"{len(names & train)} train images cannot be read, left out" in " ".join(data.notes)
    for image in data.images.itertuples():
        with Image.open(folder / image.file) as opened:
            assert np.array_equal(data.pixels[image.row], to_pixels(opened, 32, 3))


def test_class_of_which_too_little_is_left_is_refused(own_dataset):
    toys.write_csv(own_dataset, "train", [f"{n:03}.png" for n in range(8)], [0, 0, 0, 1, 1, 1, 2, 2])
    (own_dataset / "images_train" / "007.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"fewer than 2 train images of 'bottom' \(1, of 4 in all\)"):
        fomo.preprocess(toys.tiny_run(own_dataset, on_bad="skip"))


# ---- leaks


def group(folder, train: list, test: list) -> None:
    for split, groups in {"train": train, "test": test}.items():
        pd.read_csv(folder / f"{split}.csv").assign(group=groups).to_csv(folder / f"{split}.csv", index=False)


@pytest.fixture
def leaking(own_dataset):
    """A data set of which train images 1 and 5 are in test too, and 9 is of a group that is also there."""
    for train, test in {"001": "000", "005": "003"}.items():
        shutil.copy(own_dataset / "images_train" / f"{train}.png", own_dataset / "images_test" / f"{test}.png")
    group(own_dataset, [f"a{number}" for number in range(15)], ["a9", *"bcdef"])
    return own_dataset


def test_leaks_are_kept_and_said(leaking):
    data = fomo.preprocess(toys.tiny_run(leaking))
    assert len(data.images) == 15
    assert data.left_out.empty
    kept = "they are kept, so the test flatters (on_leak='drop' leaves them out)"
    assert data.notes == [f"3 train images show what a test image shows; {kept}"]


def test_dropping_leaves_exactly_the_leaked_images_out_and_says_so(leaking):
    data = fomo.preprocess(toys.tiny_run(leaking, on_leak="drop"))
    assert data.left_out.to_numpy().tolist() == [
        ["images_train/001.png", "byte-identical to an image of test"],
        ["images_train/005.png", "byte-identical to an image of test"],
        ["images_train/009.png", "of a group that is also in test"],
    ]
    assert {int(file[-7:-4]) for file in data.images["file"]} == set(range(15)) - {1, 5, 9}
    assert data.notes[0] == "3 train images show what a test image shows; they are left out of training"


def test_pixels_stay_with_their_images_when_others_are_dropped(leaking):
    data = fomo.preprocess(toys.tiny_run(leaking, on_leak="drop"))
    for image in data.images.itertuples():
        with Image.open(leaking / image.file) as opened:
            assert np.array_equal(data.pixels[image.row], to_pixels(opened, 32, 3))


def test_image_that_is_damaged_and_leaked_is_left_out_once(leaking):
    (leaking / "images_train" / "009.png").write_bytes(b"text")
    data = fomo.preprocess(toys.tiny_run(leaking, on_bad="skip", on_leak="drop"))
    assert data.left_out["file"].is_unique
    assert len(data.left_out) == 3


def test_what_was_left_out_is_read_from_the_store(leaking):
    first = fomo.preprocess(toys.tiny_run(leaking, on_leak="drop"))
    second = fomo.preprocess(toys.tiny_run(leaking, on_leak="drop"))
    pd.testing.assert_frame_equal(second.left_out, first.left_out)
    assert second.notes == first.notes


# ---- what is read of the images


@pytest.mark.parametrize(("name", "count"), [("train", 4), ("validation", 1)])
def test_sample_is_a_share_of_each_class(finished, name, count):
    data = fomo.preprocess(finished.run)
    everything = data.part(name)
    assert all(np.array_equal(a, b) for a, b in zip(data.sample(name, 1.0, 0)[1:], everything[1:], strict=True))
    _, rows, labels = data.sample(name, 0.25, 0)
    assert np.bincount(labels).tolist() == [count] * 3
    assert set(rows) < set(everything[1])
    assert np.array_equal(labels, data.images.set_index("row").loc[rows, "label"])
    assert np.array_equal(data.sample(name, 0.25, 0)[1], rows)
    assert not np.array_equal(data.sample(name, 0.25, 1)[1], rows)
    assert np.bincount(data.sample(name, 1e-6, 0)[2]).tolist() == [1, 1, 1]


def test_crop_of_the_run_is_that_of_its_images(dataset):
    data = fomo.preprocess(toys.tiny_run(dataset, crop=1.0))
    image = data.images.iloc[5]
    with data.dataset.source.open(image.file) as opened:
        assert np.array_equal(data.pixels[image.row], to_pixels(opened, 32, 3, 1.0))
        assert not np.array_equal(data.pixels[image.row], to_pixels(opened, 32, 3))


# ---- validation images that are given, damaged test images, rare classes


def test_validation_images_that_are_given_stay_for_every_network(tmp_path):
    for split, count in {"train": 6, "val": 3, "test": 2}.items():
        toys.write_class_folders(tmp_path / split, count=count, seed=1000 * count)
    data = fomo.preprocess(toys.tiny_run(tmp_path))
    for divided in (data, data.divided(0.5, seed=7)):
        parts = divided.images.groupby("split")["file"].apply(set).to_dict()
        assert {split: {file.split("/")[0] for file in files} for split, files in parts.items()} == {
            "train": {"train"},
            "validation": {"val"},
        }
        assert {split: len(files) for split, files in parts.items()} == {"train": 18, "validation": 9}


def test_given_validation_images_that_lack_a_class_are_divided_anew_and_it_is_said(tmp_path):
    for split, count in {"train": 8, "val": 2, "test": 2}.items():
        toys.write_class_folders(tmp_path / split, count=count, seed=1000 * count)
    shutil.rmtree(tmp_path / "val" / "top")
    data = fomo.preprocess(toys.tiny_run(tmp_path))
    assert data.images.groupby("label")["split"].nunique().tolist() == [2, 2, 2]
    assert any("divided anew" in note and "top" in note for note in data.notes)


def test_damaged_test_images_are_found_before_anything_is_trained(own_dataset):
    for name in ("000", "003"):
        (own_dataset / "images_test" / f"{name}.png").write_bytes(b"text")
    (own_dataset / "images_train" / "004.png").write_bytes(b"text")
    run = toys.tiny_run(own_dataset)
    with pytest.raises(UserError, match=r"cannot read images_train/004\.png .*images_test/000\.png"):
        fomo.preprocess(run)
    assert len(pd.read_csv(run.folder / "unreadable.csv")) == 3
    data = fomo.preprocess(toys.tiny_run(own_dataset, on_bad="skip"))
    assert "2 test images cannot be read, left out: images_test/000.png, images_test/003.png" in data.notes
    assert len(data.left_out) == 3


def test_refused_test_images_are_read_anew_once_they_are_repaired(own_dataset):
    path = own_dataset / "images_test" / "000.png"
    content = path.read_bytes()
    path.write_bytes(b"text")
    run = toys.tiny_run(own_dataset)
    with pytest.raises(UserError, match="cannot read"):
        fomo.preprocess(run)
    path.write_bytes(content)
    data = fomo.preprocess(run)
    assert data.left_out.empty
    assert len(read_test_images(run, data.dataset, data.survey).rows) == 6


def test_damaged_images_may_be_taken_out_and_the_same_run_goes_on(tmp_path):
    folder = toys.write_class_folders(tmp_path / "own", count=6)
    (folder / "top" / "bad.png").write_bytes(b"text")
    run = toys.tiny_run(folder)
    with pytest.raises(UserError, match="cannot read"):
        fomo.preprocess(run)
    (folder / "top" / "bad.png").unlink()
    assert fomo.preprocess(run).left_out.empty
    assert fomo.preprocess(toys.tiny_run(folder)).left_out.empty


def test_class_that_becomes_rare_is_dropped_where_that_is_asked_for(own_dataset):
    toys.write_csv(own_dataset, "train", [f"{n:03}.png" for n in range(8)], [0, 0, 0, 1, 1, 2, 2, 2])
    (own_dataset / "images_train" / "004.png").write_bytes(b"text")
    for _ in range(2):  # computed, then read
        data = fomo.preprocess(toys.tiny_run(own_dataset, on_bad="skip", on_rare="drop"))
        assert data.dataset.classes == ["top", "bottom"]
        assert data.images["label"].value_counts().to_dict() == {0: 3, 1: 3}
        assert set(data.dataset.test()["label"]) == {0, 1}
    assert "images_train/003.png" in set(data.left_out["file"])
