import gzip
import os
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

from fomo.config import ROOT, UserError
from fomo.data import datasets, sources
from fomo.data.datasets import HIDDEN, load_dataset
from fomo.data.twins import twins


@pytest.fixture
def folder(tmp_path):
    """A toy data set that the test may damage."""
    return toys.write_dataset(tmp_path / "toy", train=4, test=2)


# ---- layouts


def test_image_without_a_group_is_a_group_of_its_own(folder):
    """A table may know the patient of some images only; the others are not all of one patient."""
    for split in ("train", "test"):
        table = pd.read_csv(folder / f"{split}.csv")
        table.assign(group=["p1", *[""] * (len(table) - 1)]).to_csv(folder / f"{split}.csv", index=False)
    dataset = load_dataset(folder)
    assert dataset.train["group"].nunique() == 12
    assert not set(dataset.train["group"][1:]) & set(dataset.test()["group"][1:])


@pytest.fixture
def folders(tmp_path):
    return toys.write_class_folders(tmp_path / "folders")


def write_table(folder, **columns):
    """A table of the class folders in `folder`, with further columns; returns its path."""
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.png"))]
    table = pd.DataFrame({"path": files, "label": [file.split("/")[0] for file in files]})
    table.assign(**columns).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_class_folders_are_the_classes_and_files_are_named_by_their_path(folders):
    dataset = load_dataset(folders)
    assert dataset.classes == ["bottom", "middle", "top"]
    table = pd.concat([dataset.train, dataset.test()])
    assert set(table["file"]) == {f"{name}/{n:03}.png" for name in toys.CLASSES for n in range(10)}
    assert [file.split("/")[0] for file in table["file"]] == [dataset.classes[label] for label in table["label"]]
    assert dataset.source.open("top/003.png").size == (24, 24)


@pytest.mark.parametrize("layout", ["folders", "table"])
def test_test_split_is_cut_stratified_and_it_is_said(folders, layout):
    dataset = load_dataset(folders if layout == "folders" else write_table(folders))
    assert dataset.test()["label"].value_counts().to_dict() == dict.fromkeys(range(3), 2)
    assert dataset.train["label"].value_counts().to_dict() == dict.fromkeys(range(3), 8)
    assert not set(dataset.train["file"]) & set(dataset.test()["file"])
    said = ["table.csv: images are in column path, classes in label"] if layout == "table" else []
    said += ["there is no test split; one image in 5 was set aside as one, stratified"]
    assert list(dataset.notes) == said


def test_twins_are_on_one_side_of_a_cut_test_split_and_files_of_equal_size_are_no_twins(tmp_path):
    """Three files of each content. All are of one size, and half have the same middle."""
    folder, content = tmp_path / "folder", {}
    for number in range(60):
        file = f"{'cat' if number < 30 else 'dog'}/{number:02}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        content[file] = bytes([number // 3]) + bytes([number // 6]) * 20_000
        (folder / file).write_bytes(content[file])
    found = twins(folder, pd.Series([*content, "cat/missing.png"]))
    assert found.iloc[:60].groupby(list(content.values())).nunique().tolist() == [1] * 20
    assert found.nunique() == 20
    assert found.isna().tolist() == [False] * 60 + [True]
    dataset = load_dataset(folder)
    test = {content[file] for file in dataset.test()["file"]}
    assert (len(test), len(dataset.test())) == (4, 12)
    assert not test & {content[file] for file in dataset.train["file"]}


def test_cut_test_split_is_the_same_each_time_and_in_every_layout(folders):
    tests = [set(load_dataset(path).test()["file"]) for path in (folders, folders, write_table(folders))]
    assert tests[0] == tests[1] == tests[2]


def test_cut_test_split_does_not_depend_on_the_order_of_the_table(folders):
    path = write_table(folders)
    before = set(load_dataset(path).test()["file"])
    pd.read_csv(path).sample(frac=1, random_state=0).to_csv(path, index=False)
    assert set(load_dataset(path).test()["file"]) == before


def test_groups_of_a_table_do_not_straddle_the_cut(folders):
    dataset = load_dataset(write_table(folders, group=[f"patient {number // 3}" for number in range(30)]))
    assert not set(dataset.train["group"]) & set(dataset.test()["group"])
    assert len(dataset.test()) >= 3


def test_train_and_test_folders_are_the_splits(tmp_path):
    for split, count in {"Train": 4, "test": 2}.items():
        toys.write_class_folders(tmp_path / split, count=count, seed=count)
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.test()), dataset.notes) == (12, 6, ())
    assert dataset.classes == ["bottom", "middle", "top"]
    assert dataset.train["file"].str.startswith("Train/").all()
    assert dataset.test()["file"].str.startswith("test/").all()


def test_test_folder_without_class_folders_has_hidden_labels(tmp_path):
    toys.write_class_folders(tmp_path / "train", count=4)
    toys.write_class_folders(tmp_path / "other", count=2)
    (tmp_path / "test").mkdir()
    for number, file in enumerate(sorted((tmp_path / "other").rglob("*.png"))):
        file.rename(tmp_path / "test" / f"{number}.png")
    shutil.rmtree(tmp_path / "other")
    dataset = load_dataset(tmp_path)
    assert dataset.test()["file"].tolist() == [f"test/{number}.png" for number in range(6)]
    assert (dataset.test()["label"] == HIDDEN).all()
    assert (len(dataset.train), dataset.notes) == (12, ())


def test_images_beside_class_folders_are_named(tmp_path):
    for split in ("train", "test"):
        toys.write_class_folders(tmp_path / split, count=2)
        shutil.copy(tmp_path / split / "top" / "000.png", tmp_path / split / "loose.png")
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.test())) == (6, 6)
    assert "(it lies beside the folders of classes): 1 in test/, 1 in train/" in dataset.notes[0]
    assert set(dataset.left_out["file"]) == {"train/loose.png", "test/loose.png"}


def test_test_folder_alone_is_refused(tmp_path):
    toys.write_class_folders(tmp_path / "test", count=4)
    with pytest.raises(UserError, match="has test/ but no train/"):
        load_dataset(tmp_path)


def test_of_a_train_folder_alone_a_test_split_is_cut(tmp_path):
    toys.write_class_folders(tmp_path / "train", count=10)
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.test())) == (24, 6)
    assert "one image in 5 was set aside" in dataset.notes[0]


def test_named_pipe_is_named_and_not_waited_for(folder):
    victim = folder / load_dataset(folder).train["file"][0]
    victim.unlink()
    os.mkfifo(victim)
    source = load_dataset(folder).source
    for read in (source.open, source.content):
        with pytest.raises(OSError, match="not a file"):
            read(victim.relative_to(folder).as_posix())


def test_class_that_only_the_test_split_has_is_refused(tmp_path):
    for split in ("train", "test"):
        toys.write_class_folders(tmp_path / split, count=2)
    shutil.rmtree(tmp_path / "train" / "middle")
    with pytest.raises(UserError, match="has test images of middle, but no train images of it"):
        load_dataset(tmp_path)


def test_labels_of_a_table_are_any_text(folders):
    names = {"top": "007", "middle": "naïve, größer", "bottom": "猫"}
    path = write_table(folders)
    table = pd.read_csv(path)
    table.assign(label=table["label"].map(names)).to_csv(path, index=False)
    assert load_dataset(path).classes == ["007", "naïve, größer", "猫"]


def test_table_as_excel_writes_it_is_read(folders):
    path = write_table(folders)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load_dataset(path).train) == 24


def test_file_that_a_table_names_twice_is_refused(folders, folder):
    path = write_table(folders)
    table = pd.read_csv(path)
    pd.concat([table, table.iloc[[3]]]).to_csv(path, index=False)
    with pytest.raises(UserError, match=f"{path.name} names {table['path'][3]} more than once"):
        load_dataset(path)
    listed = folder / "train.csv"
    listed.write_text(listed.read_text() + listed.read_text().splitlines()[1] + "\n")
    with pytest.raises(UserError, match=r"train.csv names images_train/.* more than once"):
        load_dataset(folder)


def test_further_columns_of_a_table_do_not_matter(folders):
    path = write_table(folders)
    pd.read_csv(path).assign(file="x", age=3).to_csv(path, index=False)
    assert load_dataset(path).train["file"].nunique() == len(load_dataset(path).train)


@pytest.mark.parametrize(
    ("content", "message"),
    [("größe\nb\nc\n".encode("latin-1"), "is not UTF-8 text"), (b"a\nb\na\n", "has a more than once")],
)
def test_names_of_classes_that_cannot_be_used_are_refused(folder, content, message):
    (folder / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"classes.txt {message}"):
        load_dataset(folder)


def test_mark_at_the_beginning_of_a_text_file_is_no_part_of_a_class_name(folder):
    (folder / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8-sig")
    assert load_dataset(folder).classes == ["a", "b", "c"]


def test_table_names_the_splits(folders):
    split = ["train" if number % 10 < 7 else "test" for number in range(30)]
    dataset = load_dataset(write_table(folders, split=split))
    assert (len(dataset.train), len(dataset.test()), len(dataset.notes)) == (21, 9, 1)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": "extra"}, "has the split 'extra'; splits are train, training, val, valid"),
        ({"split": "test"}, "has a test split, but no train split"),
        ({"split": ["train", ""] * 15}, "names the split of some images only"),
        ({"label": ["a"] * 29 + [""]}, "has no label in line 31"),
        ({"label": "a"}, "has the one class 'a'"),
        ({"label": ["rare"] + ["a"] * 15 + ["b"] * 14}, r"fewer than 2 train images of 'rare' \(1, of 1 in all\)"),
    ],
)
def test_table_that_cannot_be_used_is_refused(folders, columns, message):
    with pytest.raises(UserError, match=message):
        load_dataset(write_table(folders, **columns))


def test_table_that_names_no_image_is_refused(folders):
    (folders / "table.csv").write_text("file,class\na.png,cat\n")
    with pytest.raises(UserError, match=r"no column of .* names images .*; its columns are file, class, .* COLUMNS="):
        load_dataset(folders / "table.csv")


def test_file_that_is_no_table_is_refused(folders):
    with pytest.raises(UserError, match=r"000\.png"):
        load_dataset(folders / "top" / "000.png")


def test_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="flwers"):
        load_dataset(tmp_path / "flwers")


def test_files_that_are_no_images_by_their_names_are_left_alone_and_named(folders):
    (folders / "top" / "Thumbs.db").write_bytes(b"x")
    (folders / "top" / ".DS_Store").write_bytes(b"x")
    (folders / "README.txt").write_text("about")
    (folders / ".git").mkdir()
    dataset = load_dataset(folders)
    assert len(dataset.classes) == 3
    assert "left out (not an image): 1 in top/, top/Thumbs.db first" in dataset.notes


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"])
def test_images_of_every_suffix_are_found(tmp_path, suffix):
    dataset = load_dataset(toys.write_class_folders(tmp_path / "folders", count=3, suffix=suffix))
    assert len(dataset.train) + len(dataset.test()) == 9


def test_archive_layout_without_its_train_table_is_refused(folder):
    """And not taken for a data set of the classes images_test and images_train."""
    (folder / "train.csv").unlink()
    with pytest.raises(UserError, match=r"has no train\.csv"):
        load_dataset(folder)


def test_empty_class_folder_is_not_left_out_without_a_word(folders):
    (folders / "empty").mkdir()
    assert any("empty" in note for note in load_dataset(folders).notes)


# ---- the names


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def idx_files(tmp_path, monkeypatch):
    """Tiny files as Fashion-MNIST's, where Debian's package puts them; returns the train pixels."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
    for prefix, count in {"train": 40, "t10k": 20}.items():
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels[:count])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    monkeypatch.setattr(datasets, "FASHION_FILES", (tmp_path / "none", folder))
    monkeypatch.setattr(datasets, "ROOT", tmp_path)
    sources._idx.cache_clear()
    return pixels


def test_fashion_is_read_from_its_original_files(idx_files):
    dataset = load_dataset("fashion")
    assert (len(dataset.train), len(dataset.test()), len(dataset.classes)) == (40, 20, 10)
    assert dataset.train["label"].tolist() == [number % 10 for number in range(40)]
    assert dataset.test()["file"].tolist() == [f"test/{number}" for number in range(20)]
    assert dataset.classes[9] == "Ankle boot"
    image = dataset.source.open("train/17")
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), idx_files[17])


def test_fashion_unpacked_goes_before_the_original_files(idx_files, tmp_path):
    toys.write_dataset(tmp_path / "data" / "fashion", train=4, test=2)
    assert len(load_dataset("fashion").train) == 12


def test_named_data_set_is_fetched_and_unpacked_once(folder, tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    shutil.make_archive(str(tmp_path / "mirror" / "flowers"), "gztar", folder)
    (tmp_path / "mirror" / "flowers.tar.gz").rename(tmp_path / "mirror" / "flowers.tgz")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(datasets, "ROOT", tmp_path)
    monkeypatch.setenv("FOMO_MIRROR", str(tmp_path / "mirror"))
    fetched = load_dataset("flowers")
    shutil.rmtree(tmp_path / "mirror")
    assert fetched.classes == toys.CLASSES
    assert load_dataset("flowers").fingerprint() == fetched.fingerprint()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["flowers"]


# ---- bad input


def test_data_set_without_names_of_classes_takes_its_labels_for_names(folder):
    (folder / "classes.txt").unlink()
    assert load_dataset(folder).classes == ["0", "1", "2"]


def test_folder_of_no_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no images \(\.jpg, .*describes the layouts"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00\x01", b'image_file_name,label\na.png,0\nb.png,"0'])
def test_unreadable_table_is_refused_by_name(folder, content):
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv"):
        load_dataset(folder)


def test_table_of_no_image_is_refused(folder):
    (folder / "test.csv").write_text("image_file_name,label\n")
    with pytest.raises(UserError, match=r"test\.csv names no image"):
        load_dataset(folder).test()


def test_missing_column_is_named(folder):
    (folder / "train.csv").write_text("image,label\n000.png,0\n")
    with pytest.raises(UserError, match="lacks the column image_file_name; it has image, label"):
        load_dataset(folder)


@pytest.mark.parametrize("label", ["-1", "1.5", "cat", "", "1e3", "99999999999999999999"])
def test_label_that_is_not_an_integer_from_0_is_named_with_its_line(folder, label):
    toys.write_csv(folder, "train", ["000.png", "001.png", "002.png"], ["0", label, "1"])
    with pytest.raises(UserError, match=rf"has '{label}' as a label \(line 3 first\)"):
        load_dataset(folder)


def test_label_beyond_the_names_of_classes_is_refused(folder):
    toys.write_csv(folder, "train", ["000.png", "001.png", "002.png"], [0, 3, 1])
    with pytest.raises(UserError, match="has label 3, but the classes are 3: 0 to 2"):
        load_dataset(folder)


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("named", [True, False])
def test_labels_may_begin_elsewhere(folder, first, named):
    """As numbers without names anywhere, with names at 1."""
    for split, count in (("train", 12), ("test", 6)):
        names = [f"{number:03}.png" for number in range(count)]
        toys.write_csv(folder, split, names, [number % 3 + first for number in range(count)])
    if not named:
        (folder / "classes.txt").unlink()
    if named and first == 3:
        with pytest.raises(UserError, match="has label 3, but the classes are 3: 0 to 2"):
            load_dataset(folder)
        return
    dataset = load_dataset(folder)
    assert dataset.classes == (toys.CLASSES if named else [str(first + number) for number in range(3)])
    for table in (dataset.train, dataset.test()):
        assert table["label"].tolist() == [number % 3 for number in range(len(table))]


def test_test_label_that_no_train_image_has_is_refused(folder):
    (folder / "classes.txt").unlink()
    toys.write_csv(folder, "test", ["000.png", "001.png"], [0, 7])
    with pytest.raises(UserError, match=r"test\.csv has label 7, but the classes are 3: 0 to 2"):
        load_dataset(folder).test()


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([0, 0, 1, 1, 2], r"'bottom' \(1, of 3 in all\)"),
        ([0, 0, 1], r"'middle' \(1, of 3 in all\), 'bottom' \(0, of 2 in all\)"),
    ],
)
def test_classes_with_fewer_than_2_images_are_all_named(folder, labels, named):
    toys.write_csv(folder, "train", [f"{number:03}.png" for number in range(len(labels))], labels)
    with pytest.raises(UserError, match=f"fewer than 2 train images of {named}; .*ON_RARE=drop"):
        load_dataset(folder)


def test_rare_classes_are_left_out_where_that_is_asked_for(folder):
    toys.write_csv(folder, "train", [f"{number:03}.png" for number in range(5)], [0, 2, 1, 0, 2])
    dataset = load_dataset(folder, on_rare="drop")
    assert dataset.classes == ["top", "bottom"]
    assert dataset.train["label"].tolist() == [0, 1, 0, 1]
    assert set(dataset.test()["label"]) == {0, 1}
    assert set(dataset.left_out["file"]) == {"images_train/002.png", "images_test/001.png", "images_test/004.png"}
    assert "left out: 3 images of 'middle', for such a class has fewer than 2 train images" in dataset.notes


def test_data_set_of_one_class_is_refused(folder):
    (folder / "classes.txt").write_text("top\n")
    toys.write_csv(folder, "train", ["000.png", "001.png"], [0, 0])
    with pytest.raises(UserError, match="one class 'top'"):
        load_dataset(folder)


def test_committed_sample_is_stratified(tmp_path):
    with tarfile.open(ROOT / "data" / "fashion_sample.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    sample = load_dataset(tmp_path)
    assert len(sample.classes) == 10
    assert sample.train["label"].value_counts().to_dict() == dict.fromkeys(range(10), 400)
    assert sample.test()["label"].value_counts().to_dict() == dict.fromkeys(range(10), 100)


# ---- the fingerprint


def test_fingerprint_is_the_same_for_the_same_data_elsewhere(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_dataset(tmp_path / "elsewhere").fingerprint() == load_dataset(folder).fingerprint()


def repaint(folder):
    Image.fromarray(toys.draw(0, seed=99)).save(folder / "images_train" / "000.png")


def rename_class(folder):
    (folder / "classes.txt").write_text("high\nmiddle\nbottom\n")


@pytest.mark.parametrize("change", [repaint, rename_class, toys.relabel])
def test_fingerprint_tells_changed_data(folder, change):
    before = load_dataset(folder).fingerprint()
    change(folder)
    assert load_dataset(folder).fingerprint() != before


def test_test_split_is_read_on_demand_only(folder):
    (folder / "test.csv").unlink()
    dataset = load_dataset(folder)
    with pytest.raises(UserError, match=r"has no test\.csv"):
        dataset.test()


def test_hidden_test_labels_are_minus_one(folder):
    toys.write_csv(folder, "test", ["000.png", "001.png"], ["", ""])
    assert load_dataset(folder).test()["label"].tolist() == [-1, -1]


def test_test_labels_that_are_hidden_in_part_are_refused(folder):
    toys.write_csv(folder, "test", ["000.png", "001.png"], ["0", ""])
    with pytest.raises(UserError, match=r"has '' as a label \(line 3 first\)"):
        load_dataset(folder).test()
