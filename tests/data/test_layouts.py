"""The layouts that people have: each is read as it is meant, or refused with the way to say what is meant."""

import json
import shutil
import tarfile
import unicodedata
import zipfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

from fomo.config import UserError
from fomo.data.datasets import HIDDEN, load_dataset

CLASSES = ("cat", "dog")


def put(folder, *names, count=3, suffix=".png"):
    """Writes so many images into each folder called so, and returns the outer one."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            seed = sum(map(ord, name)) + number
            image = Image.fromarray(toys.draw(seed % 3, shape=(12, 12, 3), seed=seed))
            image.save(folder / name / f"{number}{suffix}", format="PNG" if suffix in ("", ".odd") else None)
    return folder


def split(folder, *names, **options):
    """Writes the classes into each folder called so."""
    return put(folder, *(f"{name}/{label}" for name in names for label in CLASSES), **options)


def read(folder, **options):
    """{file: (split, class)} of a data set, and the data set."""
    dataset = load_dataset(str(folder), **options)
    found = {}
    for name, table in (("train", dataset.train), ("test", dataset.test())):
        for row in table.itertuples():
            own = "validation" if getattr(row, "validation", False) else name
            assert row.file not in found
            found[row.file] = own, "?" if row.label == HIDDEN else dataset.classes[row.label]
    return found, dataset


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Training", "Validation", "Testing"),
        ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        ("photos/all/train", "photos/all/dev", "photos/all/test"),
        ("cars_train", "cars_val", "cars_test"),
    ],
)
def test_splits_of_any_name_are_splits(tmp_path, train, validation, test):
    found, dataset = read(split(tmp_path, train, validation, test))
    assert dataset.classes == ["cat", "dog"]
    for name, folder in (("train", train), ("validation", validation), ("test", test)):
        files = {f"{folder}/{label}/{number}.png": (name, label) for label in CLASSES for number in range(3)}
        assert files.items() <= found.items()
    assert (len(found), dataset.notes) == (18, ())


def test_validation_images_are_the_test_split_where_there_is_no_other(tmp_path):
    found, dataset = read(split(tmp_path, "train", "val"))
    assert found["val/cat/0.png"] == ("test", "cat")
    assert "there is no test split; the validation images are taken for it" in dataset.notes


@pytest.mark.parametrize("outer", ["photos", "a/b/c", "archive/images"])
def test_folders_around_the_classes_are_passed(tmp_path, outer):
    found, dataset = read(split(tmp_path, outer))
    assert dataset.classes == ["cat", "dog"]
    assert {label for _, label in found.values()} == set(CLASSES)


def test_images_deeper_than_their_class_are_of_it_and_it_is_said(tmp_path):
    put(tmp_path, "cat/2023/may", "cat", "dog/x")
    found, dataset = read(tmp_path)
    assert {file: label for file, (_, label) in found.items()}["cat/2023/may/1.png"] == "cat"
    assert len(found) == 9
    assert any("deeper than their class" in note and "cat/2023/may" in note for note in dataset.notes)


def test_class_inside_of_splits_may_be_called_test(tmp_path):
    found, dataset = read(put(tmp_path, "train/test", "train/train", "test/test", "test/train"))
    assert dataset.classes == ["test", "train"]
    assert found["train/test/0.png"] == ("train", "test")
    assert found["test/train/0.png"] == ("test", "train")


def test_class_beside_others_may_be_called_train(tmp_path):
    assert read(put(tmp_path, "car", "plane", "train"))[1].classes == ["car", "plane", "train"]


@pytest.mark.parametrize("names", [("cat", "dog", "test"), ("cat", "dog", "val"), ("cat", "dog", "bird", "test")])
def test_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path, names):
    with pytest.raises(UserError, match=f"{names[-1]}/ beside .*may be a split or a class"):
        read(put(tmp_path, *names))


@pytest.mark.parametrize("inner", ["", "unknown/", "test/"])
def test_test_images_of_no_class_are_hidden(tmp_path, inner):
    split(tmp_path, "train")
    put(tmp_path, f"test/{inner}")
    found, _ = read(tmp_path)
    assert {value for file, value in found.items() if file.startswith("test/")} == {("test", "?")}


@pytest.mark.parametrize("names", [("cars_train", "cars_test"), ("train", "test"), ("a_part_1", "a_part_2")])
@pytest.mark.parametrize("table", [True, False])
def test_folders_that_mean_a_split_or_a_part_are_no_classes(tmp_path, names, table):
    put(tmp_path, *names)
    if table:
        (tmp_path / "about.csv").write_text("words,of,no use\n1,2,3\n")
    with pytest.raises(UserError, match=r"splits by their names|parts of one set") as refusal:
        read(tmp_path)
    assert ("about.csv" in str(refusal.value)) == table


def test_images_in_no_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folders, one for each class"):
        read(put(tmp_path, "."))


def test_folders_of_no_split_beside_splits_are_left_out_and_counted(tmp_path):
    put(split(tmp_path, "train", "test"), "extra/cat", count=5)
    found, dataset = read(tmp_path)
    assert len(found) == 12
    assert (dataset.left_out["reason"] == "it lies in no split").sum() == 5
    assert any("it lies in no split" in note and "5 in extra/cat/" in note for note in dataset.notes)


# ---- what is an image


@pytest.mark.parametrize("suffix", [".jfif", ".avif", "", ".odd", ".PNG", ".JPe"])
def test_what_pillow_opens_is_an_image_whatever_its_name(tmp_path, suffix):
    put(tmp_path, "cat", suffix=suffix)
    found, dataset = read(put(tmp_path, "dog"))
    assert dataset.classes == ["cat", "dog"]
    assert sum(label == "cat" for _, label in found.values()) == 3


def test_class_folder_of_which_nothing_is_used_is_refused(tmp_path):
    put(tmp_path, "cat", "dog")
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "0.heic").write_bytes(b"what Pillow does not know")
    with pytest.raises(UserError, match=r"bird lies beside folders of classes and holds nothing .*bird/0\.heic"):
        read(tmp_path)


def test_what_is_no_image_is_counted_by_folder(tmp_path):
    put(tmp_path, "cat", "dog")
    for name in ("a.txt", "b.txt"):
        (tmp_path / "cat" / name).write_text("x")
    notes = read(tmp_path)[1].notes
    assert "left out (not an image): 2 in cat/, cat/a.txt first" in notes


def test_link_to_a_folder_is_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "elsewhere", "cat")
    put(tmp_path / "own", "dog")
    (tmp_path / "own" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "own" / "dog" / "again").symlink_to(tmp_path / "own")
    assert read(tmp_path / "own")[1].classes == ["cat", "dog"]


# ---- names of classes


def test_whole_numbers_are_in_order_of_their_value(tmp_path):
    assert read(put(tmp_path, *map(str, range(1, 13))))[1].classes == [str(number) for number in range(1, 13)]


def test_names_are_brought_to_one_form(tmp_path):
    put(tmp_path / "train", "café ", "dog")
    put(tmp_path / "test", "cafe\u0301", "dog")
    found, dataset = read(tmp_path)
    assert dataset.classes == ["café", "dog"]
    assert sum(value == ("test", "café") for value in found.values()) == 3


@pytest.mark.parametrize(
    "names", [("cat", "Cat"), ("cat", "'cat'"), ("0", "0.0"), ("7", "007"), ("a b", "a  b"), ("ﬁsh", "fish")]
)
def test_names_that_differ_in_form_only_are_refused(tmp_path, names):
    with pytest.raises(UserError, match=r"names differ in form only: .*write each in one way"):
        read(put(tmp_path, *names, "other"))


def test_letters_may_be_small_and_large(tmp_path):
    assert read(put(tmp_path, "a", "A"))[1].classes == ["A", "a"]


# ---- archives


def pack(folder, path):
    """Packs a folder, and removes it."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for file in sorted(folder.rglob("*.png")):
                packed.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as packed:
            packed.add(folder, folder.name)
    shutil.rmtree(folder)
    return path


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz"])
def test_archive_is_read_as_the_folder_that_it_holds(tmp_path, monkeypatch, name):
    monkeypatch.setenv("FOMO_RUNS", str(tmp_path / "runs"))
    folder = split(tmp_path / "photos", "train", "test")
    expected = {f"photos/{file}": value for file, value in read(folder)[0].items()}
    archive = pack(folder, tmp_path / name)
    found, dataset = read(archive)
    assert found == expected
    assert dataset.name == str(archive)
    assert all(dataset.source.open(file).size == (12, 12) for file in found)
    assert {path.name for path in tmp_path.iterdir()} == {name, "runs"}
    assert read(archive)[1].fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize("name", ["photos.7z", "photos.rar"])
def test_archive_that_is_not_read_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"7z")
    with pytest.raises(UserError, match=f"{name} is packed in a way that is not read; unpack it"):
        read(tmp_path / name)


# ---- tables

FILES = [f"images/{number}.png" for number in range(12)]
LABELS = [CLASSES[number % 2] for number in range(12)]
LABELS_OF_TOY = [number % 3 for number in range(12)]


@pytest.fixture
def images(tmp_path):
    """A folder with twelve images in images/."""
    return put(tmp_path, "images", count=12)


def write(folder, columns, name="labels.csv", **options):
    pd.DataFrame(columns).to_csv(folder / name, index=False, **options)
    return folder / name


WAYS = {
    "Hugging Face": {"file_name": FILES, "label": LABELS},
    "id_code": {"id_code": [str(number) for number in range(12)], "diagnosis": [number % 2 for number in range(12)]},
    "names only": {"image": [file.split("/")[1] for file in FILES], "class": LABELS},
    "back-slashes": {"image": [file.replace("/", "\\") for file in FILES], "label": LABELS},
    "another machine": {"path": [f"/home/ann/project/{file}" for file in FILES], "label": LABELS},
    "another system": {"path": [f"C:\\Users\\ann\\{number}.png" for number in range(12)], "label": LABELS},
    "spaces": {" file ": [f" {file} " for file in FILES], "label ": [f"{label} " for label in LABELS]},
    "one-hot": {"file": FILES} | {name: [int(label == name) for label in LABELS] for name in CLASSES},
    "one-hot, 1.0": {"file": FILES} | {name: [float(label == name) for label in LABELS] for name in CLASSES},
    "from 1": {"file": FILES, "label": [number % 2 + 1 for number in range(12)]},
    "more columns": {"n": range(12), "age": np.arange(12) / 7, "file": FILES, "label": LABELS},
    "a label beside marks of 0 and 1": {"file": FILES, "label": LABELS}
    | {name: [int((number % 3 == 0) == want) for number in range(12)] for name, want in (("male", 1), ("female", 0))},
    "one column of few values": {"file": FILES, "kind": LABELS, "sharpness": np.arange(12) / 7},
}


@pytest.mark.parametrize("way", WAYS)
def test_columns_are_found_by_looking(images, way):
    found, dataset = read(write(images, WAYS[way]))
    names = {"id_code": ["0", "1"], "from 1": ["1", "2"]}.get(way, ["cat", "dog"])
    assert dataset.classes == names
    assert {file: label for file, (_, label) in found.items()} == {
        file: names[number % 2] for number, file in enumerate(FILES)
    }
    assert dataset.notes[0].startswith("labels.csv: images are in column ")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_table_with_another_separator_is_read(images, separator):
    assert len(read(write(images, WAYS["Hugging Face"], sep=separator))[0]) == 12


def test_metadata_as_lines_of_json_are_read(images):
    rows = [json.dumps({"file_name": file, "label": label}) for file, label in zip(FILES, LABELS, strict=True)]
    (images / "metadata.jsonl").write_text("\n".join(rows))
    assert read(images / "metadata.jsonl")[1].classes == ["cat", "dog"]


def test_table_in_a_folder_without_classes_is_used(images):
    write(images, WAYS["id_code"])
    assert read(images)[1].classes == ["0", "1"]


def test_tables_named_as_splits_are_those(tmp_path):
    put(tmp_path, "train", "test", count=6)
    names = [f"{number}.png" for number in range(6)]
    write(tmp_path, {"image": names, "class": LABELS[:6]}, "train.csv")
    write(tmp_path, {"image": names}, "test.csv")
    found, _ = read(tmp_path)
    assert found["train/1.png"] == ("train", "dog")
    assert found["test/1.png"] == ("test", "?")


def test_tables_inside_of_the_splits_are_used(tmp_path):
    put(tmp_path, "train", "test", count=6)
    for name in ("train", "test"):
        columns = {"file_name": [f"{number}.png" for number in range(6)], "label": LABELS[:6]}
        write(tmp_path, columns, f"{name}/metadata.csv")
    found, _ = read(tmp_path)
    assert (found["train/1.png"], found["test/0.png"], len(found)) == (("train", "dog"), ("test", "cat"), 12)


def test_one_table_of_images_in_folders_that_are_splits_leaves_them_so(tmp_path):
    put(tmp_path, "train", "test", count=6)
    files = [f"{name}/{number}.png" for name in ("train", "test") for number in range(6)]
    found, _ = read(write(tmp_path, {"file_name": files, "label": LABELS}))
    assert found == {file: (file.split("/")[0], label) for file, label in zip(files, LABELS, strict=True)}


def test_empty_labels_of_test_images_are_hidden(images):
    splits = ["train"] * 8 + ["test"] * 4
    found, _ = read(write(images, {"file": FILES, "label": [*LABELS[:8], *[""] * 4], "split": splits}))
    assert list(found.values()).count(("test", "?")) == 4


@pytest.mark.parametrize(
    "columns",
    [
        {"file": FILES, "breed": LABELS, "place": LABELS[::-1]},
        {"file": FILES, "label": LABELS, "class": LABELS[::-1]},
        {"file": FILES, "weight": np.arange(12) / 7},
    ],
)
def test_table_that_is_not_clear_is_refused_with_its_columns_and_first_lines(images, columns):
    with pytest.raises(UserError) as refusal:
        read(write(images, columns))
    for text in (", ".join(columns), "images/0.png", "images/1.png", "COLUMNS=file:label"):
        assert text in str(refusal.value)


def test_columns_that_are_given_decide(images):
    table = write(images, {"file": FILES, "breed": LABELS, "place": LABELS[::-1], "owner": [n // 2 for n in range(12)]})
    found, _ = read(table, columns="file:place")
    assert found[FILES[0]][1] == "dog"
    assert read(table, columns="file:breed:owner")[1].train["group"].nunique() < 6
    with pytest.raises(UserError, match=r"COLUMNS=file:race does not say .* it has file, breed, place, owner"):
        read(table, columns="file:race")


def test_where_no_file_of_a_table_is_there_the_common_mistakes_are_named(images, tmp_path):
    table = write(images, {"file": [f"{file}.jpeg" for file in FILES], "label": LABELS})
    with pytest.raises(UserError, match=r"none of the 12 files .*0\.png\.jpeg.* there is 0\.png, .* Suffix, folder or"):
        read(table, columns="file:label")
    folder = toys.write_dataset(tmp_path / "toy", train=4, test=2)
    toys.write_csv(folder, "train", [f"{n:03}" for n in range(12)], LABELS_OF_TOY)
    with pytest.raises(UserError, match=r"none of the 12 files .* there is 000\.png, 001\.png"):
        read(folder)


def test_images_that_no_table_names_are_left_out(images):
    table = write(images, {"file": FILES[:10], "label": LABELS[:10]})
    assert set(read(table)[1].left_out["file"]) == set(FILES[10:])


def test_table_beside_folders_of_classes_is_named(tmp_path):
    write(put(tmp_path, "cat", "dog"), {"file": ["cat/0.png"], "label": ["x"]}, "metadata.csv")
    assert any("metadata.csv lies beside the images" in note for note in read(tmp_path)[1].notes)


# ---- files that are not called as the table has them


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_of_a_file_may_be_written_in_another_way(tmp_path, form):
    own = {"NFC": "NFD", "NFD": "NFC"}[form]
    put(tmp_path, *(unicodedata.normalize(own, f"é{number}") for number in range(6)), count=1)
    names = [unicodedata.normalize(form, f"é{number}/0.png") for number in range(6)]
    assert len(read(write(tmp_path, {"file": names, "label": LABELS[:6]}))[0]) == 6


def test_file_with_spaces_around_its_name_is_found(tmp_path):
    put(tmp_path, " a ", "b ", count=3)
    names = [f"{folder}/{number}" for folder in (" a ", "b ") for number in range(3)]
    found, _ = read(write(tmp_path, {"file": names, "label": ["x"] * 3 + ["y"] * 3}))
    assert {file: label for file, (_, label) in found.items()}["b /1.png"] == "y"


@pytest.mark.parametrize("prefix", ["{folder}/", "../here/", "/home/ann/here/", "{link}/", "./a/../"])
def test_path_is_the_file_that_it_leads_to_before_any_that_ends_so(tmp_path, prefix):
    folder = put(tmp_path / "here", "a", "here/a", count=6)
    (tmp_path / "link").symlink_to(folder)
    prefix = prefix.format(folder=folder, link=tmp_path / "link")
    names = [f"{prefix}a/{number}.png" for number in range(6)]
    found, _ = read(write(folder, {"file": names, "label": LABELS[:6]}))
    outer = "here/" if "ann" in prefix else ""  # there is nothing at it, so that the longest end decides
    assert set(found) == {f"{outer}a/{number}.png" for number in range(6)}


def test_path_that_leads_out_of_the_folder_is_no_file_in_it(tmp_path):
    put(tmp_path / "here", ".", count=6)
    put(tmp_path / "there", ".", count=6)
    names = [f"..\\there\\{number}.png" for number in range(6)]
    found, dataset = read(write(tmp_path / "here", {"file": names, "label": LABELS[:6]}))
    assert set(found) == {f"../there/{number}.png" for number in range(6)}
    assert len(dataset.left_out) == 6


def test_column_of_long_texts_is_no_column_of_files(images):
    columns = {"text": [f"{number}" * 5000 for number in range(12)], "file": FILES, "label": LABELS}
    assert len(read(write(images, columns))[0]) == 12


# ---- found by trees at random


@pytest.mark.parametrize("beside", ["photos", "photos/train", "photos/train/train"])
def test_image_beside_folders_around_splits_hides_none_of_them(tmp_path, beside):
    split(tmp_path, "photos/train/train", "photos/test/test")
    put(tmp_path, beside, count=1)
    found, dataset = read(tmp_path)
    assert (len(found), list(dataset.left_out["file"])) == (12, [f"{beside}/0.png"])


def test_splits_may_be_called_in_several_ways(tmp_path):
    found, _ = read(split(tmp_path, "train", "seg_test", "my-val"))
    assert Counter(own for own, _ in found.values()) == {"train": 6, "validation": 6, "test": 6}


def test_test_images_of_one_class_and_deeper_than_it_are_of_it(tmp_path):
    put(split(tmp_path, "train"), "test/cat/deeper")
    assert read(tmp_path)[0]["test/cat/deeper/0.png"] == ("test", "cat")


def test_name_that_is_another_without_suffix_is_the_one_called_so(tmp_path):
    put(put(tmp_path, "a", suffix=""), "b", suffix=".jpg")
    write(tmp_path, {"file": ["0", "1", "2", "0.jpg", "1.jpg", "2.jpg"], "label": ["x"] * 3 + ["y"] * 3})
    found, _ = read(tmp_path / "labels.csv")
    assert {file: label for file, (_, label) in found.items()}["a/1"] == "x"


@pytest.mark.parametrize("name", ["y", "label", "split", "group"])
def test_one_hot_class_may_be_called_like_a_column_of_another_kind(images, name):
    ones = {one: [int(label == other) for label in LABELS] for one, other in ((name, "cat"), ("zebra", "dog"))}
    assert read(write(images, {"file": FILES} | ones))[1].classes == [name, "zebra"]


def test_link_to_a_folder_beside_it_has_the_same_images(tmp_path):
    put(tmp_path / "all", "cat", "dog")
    (tmp_path / "train").mkdir()
    for name in CLASSES:
        (tmp_path / "train" / name).symlink_to(f"../all/{name}")
    found, dataset = read(tmp_path)
    assert (len(found), dataset.classes) == (6, ["cat", "dog"])
    assert set(dataset.left_out["reason"]) == {"it lies in no split"}


@pytest.mark.parametrize("count", [1, 3])
def test_refusal_of_long_names_can_be_read(tmp_path, count):
    put(tmp_path, *(f"{number}{'x' * 240}" for number in range(30)), count=count)
    if count == 3:
        (tmp_path / ("y" * 250)).mkdir()
        for number in range(5):
            (tmp_path / ("y" * 250) / f"{number}{'z' * 240}").touch()
    with pytest.raises(UserError) as refusal:
        read(tmp_path)
    assert len(str(refusal.value)) < 2000
