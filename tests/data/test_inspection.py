import io
import shutil

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

import fomo
from fomo.__main__ import main
from fomo.config import UserError
from fomo.data.datasets import Folder, load_dataset
from fomo.data.inspection import digests, leaks


def photograph(seed: int) -> Image.Image:
    """A smooth picture, as a camera takes it: noise would not survive a JPEG."""
    blobs = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((120, 120), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """A data set of photographs in the archive layout, 6 in train and 4 in test, that the test may change."""
    for split, count in {"train": 6, "test": 4}.items():
        (tmp_path / "photos" / f"images_{split}").mkdir(parents=True)
        names = [f"{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            photograph(number + 100 * (split == "test")).save(tmp_path / "photos" / f"images_{split}" / name)
        toys.write_csv(tmp_path / "photos", split, names, [number % 2 for number in range(count)])
    (tmp_path / "photos" / "classes.txt").write_text("cat\ndog\n")
    return tmp_path / "photos"


def copy(folder, origin: str, target: str) -> None:
    shutil.copy(folder / f"images_{origin}", folder / f"images_{target}")


def found(folder) -> dict[str, int]:
    """The findings that are not as in a data set without faults."""
    table = fomo.inspect(str(folder)).findings().set_index("finding")["count"]
    usual = {"train images": 6, "test images": 4, "classes": 2, "sizes": 1, "modes": 1}
    return {name: count for name, count in table.items() if count != usual.get(name, 0)}


def group(folder, train: list, test: list) -> None:
    for split, groups in {"train": train, "test": test}.items():
        pd.read_csv(folder / f"{split}.csv").assign(group=groups).to_csv(folder / f"{split}.csv", index=False)


# ---- what is found


def test_data_set_without_faults_has_no_findings(folder):
    assert found(folder) == {}
    assert fomo.inspect(str(folder)).verdict() == f"{folder}: nothing was found."


def test_images_are_counted_by_class_and_split(folder):
    assert fomo.inspect(str(folder)).counts().to_dict("index") == {
        "cat": {"train": 3, "test": 2},
        "dog": {"train": 3, "test": 2},
    }


def test_sizes_and_modes_are_counted(folder):
    photograph(0).resize((60, 90)).convert("L").save(folder / "images_train" / "0.png")
    table = fomo.inspect(str(folder)).findings().set_index("finding")
    assert table.loc["sizes"].tolist() == [2, "60 x 90 to 120 x 120"]
    assert table.loc["modes"].tolist() == [2, "L, RGB"]


def test_twins_within_a_split_are_found(folder):
    copy(folder, "train/0.png", "train/2.png")
    copy(folder, "test/1.png", "test/3.png")
    assert found(folder) == {
        "train images byte-identical to another": 2,
        "test images byte-identical to another": 2,
    }


def test_test_image_that_is_in_train_is_found_and_is_in_the_verdict(folder):
    copy(folder, "train/0.png", "test/2.png")
    assert found(folder) == {"test images byte-identical to a train image": 1}
    assert "1 test images are also in train" in fomo.inspect(str(folder)).verdict()
    assert "on_leak='drop'" in fomo.inspect(str(folder)).verdict()


def test_twins_of_two_classes_are_called_out(folder):
    copy(folder, "train/0.png", "train/1.png")
    inspection = fomo.inspect(str(folder))
    assert inspection.conflicts()["file"].tolist() == ["images_train/0.png", "images_train/1.png"]
    assert found(folder)["identical images with conflicting labels"] == 1
    assert "1 images occur with conflicting labels" in inspection.verdict()


def test_twins_across_the_splits_with_two_labels_conflict(folder):
    copy(folder, "train/0.png", "test/1.png")
    assert found(folder)["identical images with conflicting labels"] == 1


def test_hidden_labels_conflict_with_nothing(folder):
    copy(folder, "train/0.png", "test/1.png")
    toys.write_csv(folder, "test", [f"{number}.png" for number in range(4)], [""] * 4)
    inspection = fomo.inspect(str(folder))
    assert inspection.conflicts().empty
    assert list(inspection.counts().columns) == ["train"]
    assert inspection.findings().set_index("finding").loc["test images", "details"] == "labels hidden"
    assert inspection.examples()[1] == ["train\ncat", "test\n?"]


@pytest.mark.parametrize("quality", [60, 90])
def test_same_picture_stored_anew_is_nearly_identical_and_another_is_not(folder, quality):
    buffer = io.BytesIO()
    photograph(3).save(buffer, "jpeg", quality=quality)
    (folder / "images_test" / "2.png").write_bytes(buffer.getvalue())
    assert found(folder) == {"test images nearly identical to a train image": 1}
    pairs = fomo.inspect(str(folder)).pairs
    files = fomo.inspect(str(folder)).images["file"]
    assert files[pairs.iloc[0]].tolist() == ["images_test/2.png", "images_train/3.png"]
    assert "1 test images are nearly identical to a train image; if" in fomo.inspect(str(folder)).verdict()


def test_same_picture_in_another_size_is_nearly_identical(folder):
    photograph(3).resize((90, 90), Image.Resampling.LANCZOS).save(folder / "images_test" / "2.png")
    assert found(folder)["test images nearly identical to a train image"] == 1


def test_flat_images_are_not_taken_for_one_another(folder):
    Image.new("RGB", (120, 120), "black").save(folder / "images_train" / "0.png")
    Image.new("RGB", (120, 120), "white").save(folder / "images_test" / "0.png")
    assert found(folder) == {"constant images, of one colour only": 2}


def test_groups_that_straddle_are_counted_with_their_images(folder):
    group(folder, ["a", "a", "b", "b", "c", "d"], ["a", "a", "d", "e"])
    assert found(folder) == {
        "groups that straddle train and test": 2,
        "test images of such a group": 3,
        "train images of such a group": 3,
    }
    assert "3 test images are also in train" in fomo.inspect(str(folder)).verdict()


def test_unreadable_images_are_named_with_their_reasons(folder):
    (folder / "images_train" / "1.png").write_bytes(b"text")
    (folder / "images_test" / "1.png").unlink()
    table = fomo.inspect(str(folder)).findings().set_index("finding")
    assert table.loc["unreadable images"].tolist() == [
        2,
        "images_train/1.png (not an image, or its header is damaged), images_test/1.png (no such file or directory)",
    ]
    assert "2 images cannot be read (on_bad='skip' leaves them out)" in fomo.inspect(str(folder)).verdict()


def test_data_set_of_which_nothing_can_be_read_is_inspected(folder):
    for image in folder.glob("images_*/*.png"):
        image.write_bytes(b"text")
    assert found(folder)["unreadable images"] == 10


def test_unbalanced_classes_are_in_the_verdict(folder):
    for number in range(6, 10):
        copy(folder, f"train/{number - 6}.png", f"train/{number}.png")
    toys.write_csv(folder, "train", [f"{number}.png" for number in range(10)], [0, 0, *[1] * 8])
    assert "the classes are unbalanced, 8 to 2" in fomo.inspect(str(folder)).verdict()


def test_notes_of_the_data_set_are_in_the_verdict(tmp_path):
    folder = toys.write_class_folders(tmp_path / "folders", count=5)
    assert "there is no test split; one image in 5 was set aside" in fomo.inspect(str(folder)).verdict()


# ---- oddities


def odd(folder) -> dict[str, tuple[int, str]]:
    """The count and the details of what is odd about some images; the verdict names it, too."""
    inspection = fomo.inspect(str(folder))
    table = inspection.findings().iloc[13:]
    for row in table.itertuples():
        assert f"{row.count} {row.finding}: {row.details}" in inspection.verdict()
    return {finding: (count, details) for finding, count, details in table.itertuples(index=False)}


def store(folder, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(folder / name, "tiff")


def measured(folder) -> np.ndarray:
    """Makes the images floats from 0 to 1; returns those of the first train image."""
    for path in folder.glob("images_*/*.png"):
        with Image.open(path) as image:
            values = np.asarray(image.convert("L")).astype(np.float32) / 255
        store(folder, path.relative_to(folder), values)
    with Image.open(folder / "images_train" / "0.png") as image:
        return np.array(image)


def test_image_with_numbers_that_are_none_is_named(folder):
    values = measured(folder)
    for name, defect in {"images_train/0.png": np.nan, "images_test/1.png": np.inf}.items():
        values[3, 3] = defect
        store(folder, name, values)
    finding = "images with numbers that are none (NaN, infinite), seen as black"
    assert odd(folder)[finding] == (2, "images_train/0.png, images_test/1.png")
    assert "float32 images: 0 is seen as black and 1 as white" in fomo.inspect(str(folder)).verdict()


def test_image_that_is_clipped_unlike_the_rest_is_named(folder):
    values = measured(folder)
    values[: len(values) // 2] = 5
    store(folder, "images_train/0.png", values)
    assert odd(folder) == {
        "images that are clipped, unlike the rest": (1, "30% or more of them black or white: images_train/0.png")
    }


def test_background_that_all_images_have_is_not_called_clipped(folder):
    for path in folder.glob("images_*/*.png"):
        with Image.open(path) as image:
            image.load()
        image.paste("white", (0, 0, 120, 60))
        image.save(path)
    assert odd(folder) == {}


def test_image_of_another_kind_is_named(folder):
    with Image.open(folder / "images_train" / "2.png") as image:
        store(folder, "images_train/2.png", np.asarray(image.convert("L")).astype(np.uint16) * 16)
    assert odd(folder) == {"images of another kind than most": (1, "most are RGB: images_train/2.png")}
    assert fomo.inspect(str(folder)).images["mode"][2] == "uint16"


def test_test_image_of_a_kind_that_train_lacks_is_unreadable(folder):
    store(folder, "images_test/2.png", np.arange(400, dtype=np.uint16).reshape(20, 20))
    details = fomo.inspect(str(folder)).findings().set_index("finding").loc["unreadable images", "details"]
    assert details.startswith("images_test/2.png (holds uint16, which no train image does")


@pytest.mark.parametrize("form", ["gif", "tiff", "webp"])
def test_pages_that_are_not_looked_at_are_counted(folder, form):
    for name, pages in {"1.png": 5, "2.png": 2}.items():
        rest = [photograph(number) for number in range(10, 9 + pages)]
        photograph(3).save(folder / "images_train" / name, form, save_all=True, append_images=rest)
    assert odd(folder)["images with pages that are not looked at"] == (
        2,
        "all but the first of up to 5: images_train/1.png, images_train/2.png",
    )


def test_channels_that_are_not_looked_at_are_counted(folder):
    image = Image.merge("RGBX", [*photograph(1).split(), Image.new("L", (120, 120))])
    image.save(folder / "images_train" / "1.png", "tiff")
    assert odd(folder) == {"images with channels that are not looked at": (1, "up to 1: images_train/1.png")}


def test_share_that_a_crop_cuts_away_is_told_where_images_are_no_squares(folder):
    for path in folder.glob("images_*/*.png"):
        with Image.open(path) as image:
            image.resize((160, 80)).save(path)
    cut = "fit='crop' cuts away 50% of a typical one, fit='squish' or 'pad' nothing"
    assert odd(folder) == {"images that are no squares": (10, cut)}


def test_few_oblong_images_are_not_worth_a_word(folder):
    photograph(3).resize((160, 80)).save(folder / "images_train" / "0.png")
    assert odd(folder) == {}


# ---- examples


def test_examples_are_the_pairs_that_should_not_be(folder):
    copy(folder, "train/0.png", "train/1.png")
    copy(folder, "train/2.png", "test/0.png")
    pixels, titles = fomo.inspect(str(folder)).examples()
    assert pixels.shape == (4, 3, 96, 96)
    assert titles == ["train\ncat", "train\ndog", "train\ncat", "test\ncat"]
    assert np.array_equal(pixels[0], pixels[1])


def test_examples_of_a_data_set_without_faults_are_some_of_its_images(folder):
    pixels, titles = fomo.inspect(str(folder)).examples()
    assert len(pixels) == len(titles) == 6


def test_examples_leave_out_what_cannot_be_read(folder):
    (folder / "images_train" / "0.png").write_bytes(b"text")
    assert len(fomo.inspect(str(folder)).examples()[0]) == 5


# ---- the store


def test_second_inspection_opens_no_image(folder, monkeypatch):
    copy(folder, "train/0.png", "test/1.png")
    (folder / "images_train" / "5.png").write_bytes(b"text")
    first = fomo.inspect(str(folder))
    for method in ("open", "content"):
        monkeypatch.setattr(Folder, method, lambda *_: pytest.fail("an image was opened"))
    second = fomo.inspect(str(folder))
    pd.testing.assert_frame_equal(second.findings(), first.findings())
    pd.testing.assert_frame_equal(second.conflicts(), first.conflicts(), check_dtype=False)
    assert second.verdict() == first.verdict()


def test_changed_image_is_looked_at_again(folder):
    assert found(folder) == {}
    (folder / "images_test" / "1.png").write_bytes(b"text")
    assert found(folder) == {"unreadable images": 1}


# ---- leaks


def test_leaks_are_the_train_images_that_a_test_image_shows(folder):
    copy(folder, "train/0.png", "test/2.png")
    group(folder, list("abcdef"), list("bxyz"))
    table = leaks(digests(load_dataset(folder)))
    assert table.to_numpy().tolist() == [
        ["images_train/0.png", "byte-identical to an image of test"],
        ["images_train/1.png", "of a group that is also in test"],
    ]


def test_images_that_are_missing_are_no_leak(folder):
    (folder / "images_train" / "0.png").unlink()
    (folder / "images_test" / "0.png").unlink()
    assert leaks(digests(load_dataset(folder))).empty


# ---- the command


def test_command_prints_counts_findings_and_the_verdict(folder, capsys):
    copy(folder, "train/0.png", "test/2.png")
    assert main(["inspect", str(folder)]) == 0
    counts, findings, verdict = capsys.readouterr().out.strip().split("\n\n")
    assert [line.split() for line in counts.splitlines()[-2:]] == [["cat", "3", "2"], ["dog", "3", "2"]]
    assert "test images byte-identical to a train image" in findings
    assert verdict.startswith(f"{folder}: 1 test images are also in train")
    assert len(verdict.splitlines()) == 1


def test_command_names_a_path_that_does_not_exist(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "flwers")]) == 2
    message = capsys.readouterr().err
    assert "flwers" in message
    assert "free some space" not in message


@pytest.mark.parametrize("name", ["изображение", "写真", "a, b\nc", "'quoted\"", "\u202egnp", "\udcff\udcfe"])
def test_command_prints_names_in_any_script(tmp_path, capsys, name):
    folder = toys.write_class_folders(tmp_path / "folders", count=4)
    (folder / "top" / f"{name}.png").write_bytes(b"text")
    assert main(["inspect", str(folder)]) == 0
    assert "1 images cannot be read" in capsys.readouterr().out


# ---- which data set


def test_files_left_out_are_a_finding(tmp_path):
    folder = toys.write_class_folders(tmp_path / "own", count=4)
    (folder / "top" / "notes.txt").write_text("x")
    findings = fomo.inspect(str(folder)).findings().set_index("finding")
    assert findings.loc["files left out", "count"] == 1
    assert "(not an image): 1 in top/" in findings.loc["files left out", "details"]


def test_name_that_is_also_a_folder_here_is_refused_with_both_ways_to_say_it(tmp_path, monkeypatch):
    toys.write_class_folders(tmp_path / "emotions", count=4)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'emotions' .* is there, too; give ./emotions or emotions:"):
        fomo.inspect("emotions")
    assert str(tmp_path / "emotions") in fomo.inspect("./emotions").verdict()
    with pytest.raises(UserError, match=r"give \./emotions or emotions:"):
        fomo.Run("emotions")
    assert fomo.Run("emotions:").config.dataset == "emotions"


def test_folder_that_a_named_data_set_is_read_from_is_said():
    assert fomo.inspect("fashion_sample").verdict().startswith("fashion_sample (data/fashion_sample): ")
