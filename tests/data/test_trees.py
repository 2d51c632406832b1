"""Trees at random: every image is used as it is meant or left out with a reason, or the tree is refused by its name."""

import io
import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from fomo.config import UserError
from fomo.data.datasets import HIDDEN, load_dataset
from fomo.data.folders import split_of
from fomo.data.tree import OTHERS, SUFFIXES

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def _png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png("red")
ODD = ["007", "1", "10", "0.5", "%20", "50%", "it's", 'so "so"', "cafe\u0301", "ﬁsh", "猫", "кот", "🐈\u200d⬛", "#1"]
ODD += ["two  words", " edge ", "~", "-rf", "$HOME", "nan", "None", "true", "a;b", "a|b|c", "A: B", "a.b.c", "con"]
ODD += ["x" * 200, "長" * 60]
LETTERS = st.characters(categories=("L", "M", "N", "P", "S", "Zs"), exclude_characters="/\\")
NAMES = (st.sampled_from(ODD) | st.text(LETTERS, min_size=1, max_size=8)).filter(
    lambda name: name[0] != "." and name[1:] != ":" and name.strip() and not split_of(name)
)
SUFFIX = st.sampled_from([*SUFFIXES, ".PNG", ".Jpeg", "", ".odd", ".dcm"])
SPLITS = {
    "train": ("train", "Training", "TRAIN", "seg_train", "cars-train"),
    "validation": ("val", "VALID", "Validation", "dev", "seg_val"),
    "test": ("test", "Testing", "seg_test", "test set"),
}
TEXTS = ("text.png", "text", "notes.txt", "Thumbs.db", ".DS_Store")
DAMAGE = dict.fromkeys(TEXTS, b"no image")  # by the file's name, its content; None: a folder; a path: a link to it
DAMAGE |= {"empty.png": b"", "truncated.png": PNG[:40], "truncated": PNG[:20], "folder.jpg": None, "folder": None}
DAMAGE |= {"broken.png": Path("nowhere"), "link.png": Path(".."), ".hidden.png": PNG, "__MACOSX/a/b.png": PNG}
DAMAGES = st.lists(st.sampled_from(sorted(DAMAGE)), max_size=4, unique=True)


def _form(name):
    return " ".join(unicodedata.normalize("NFKC", name).casefold().strip("\"'` ").rstrip("0.").lstrip("0+").split())


FILES = st.lists(NAMES, min_size=5, max_size=7, unique_by=_form)
CLASSES = st.lists(NAMES, min_size=2, max_size=4, unique_by=_form)


@st.composite
def class_folders(draw, classes, deep=True):
    """{path: class} of the images of some folders of classes."""
    found = {}
    for name in classes:
        for file in draw(FILES):
            inner = draw(st.sampled_from(("", "", "deeper/", "a/b/"))) if deep else ""
            found[f"{name}/{inner}{file}{draw(SUFFIX)}"] = name
    return found


@st.composite
def trees(draw):
    """{path: (split or "", class)} of a tree, what lies beside, by path, and whether nothing of it makes it unclear."""
    classes = draw(CLASSES)
    outer = "".join(f"{name}/" for name in draw(st.lists(NAMES, max_size=3)))
    splits = draw(st.sampled_from(((), ("train",), ("train", "test"), ("train", "validation", "test"))))
    images = {}
    for split in splits or ("",):
        folder = f"{draw(st.sampled_from(SPLITS[split]))}/" if split else ""
        folder *= draw(st.integers(1, 2))
        hidden = split == "test" and draw(st.booleans())
        of = draw(st.lists(st.sampled_from(classes), min_size=1, unique=True)) if split == "test" else classes
        for file, label in draw(class_folders(of)).items():
            path = file.rsplit("/", 1)[1] if hidden else file
            own = split if len(splits) > 1 else ""  # or a part of it is cut off
            images[f"{outer}{folder}{path}"] = own, "?" if hidden else label
    folders = sorted({str(Path(path).parent) for path in images})
    beside = {f"{draw(st.sampled_from(folders))}/{name}": DAMAGE[name] for name in draw(DAMAGES)}
    loose = draw(st.sampled_from((None, None, None, "", outer)))
    if loose is not None:
        beside[f"{loose}loose.png"] = PNG
    return images, beside, not (loose is not None and not splits)


def write(folder, images, beside):
    for path, content in [*((path, PNG) for path in images), *beside.items()]:
        place = folder / path
        (place if content is None else place.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            place.symlink_to(content)
        elif content is not None:
            place.write_bytes(content)


def images_in(folder):
    """What Pillow opens, or is called like an image, and is not hidden."""
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name != "__MACOSX"]
        for name in files:
            suffix = Path(name).suffix.lower()
            if name[0] != "." and suffix not in OTHERS and (suffix in SUFFIXES or _opens(Path(path, name))):
                yield Path(path, name).relative_to(folder).as_posix()


def _opens(path):
    try:
        return bool(Image.open(path))
    except Exception:
        return False


def read(path):
    """The data set, or what is said where it is refused."""
    try:
        dataset, again = load_dataset(str(path)), load_dataset(str(path))
    except UserError as refusal:
        return str(refusal)
    assert dataset.fingerprint() == again.fingerprint()
    assert dataset.fingerprint("test") == again.fingerprint("test")
    pd.testing.assert_frame_equal(dataset.left_out, again.left_out)
    assert dataset.notes == again.notes
    return dataset


def check(dataset, meant, folder):
    """Holds that each image is somewhere exactly once, and what is meant for one is so."""
    used = {}
    for split, table in (("train", dataset.train), ("test", dataset.test())):
        for row in table.itertuples():
            assert row.file not in used
            own = "validation" if getattr(row, "validation", False) else split
            used[row.file] = own, "?" if row.label == HIDDEN else dataset.classes[row.label]
    places = Counter([*used, *dataset.left_out["file"]])
    there = set(images_in(folder))
    assert {file: places[file] for file in there} == dict.fromkeys(there, 1)
    assert set(used) <= there
    assert dataset.left_out["reason"].str.len().gt(0).all()
    for file, (split, label) in meant.items():
        expected = unicodedata.normalize("NFC", label).strip()
        assert used[file][1] == expected
        assert not split or used[file][0] == split


@SETTINGS
@given(trees(), st.sampled_from(("", "", "", "zip", "gztar")))
def test_tree_at_random_is_read_as_it_is_meant_or_refused(tree, archive):
    images, beside, clear = tree
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", f"{temporary}/runs")
        folder = Path(temporary) / "given"
        if archive:
            beside = {path: content for path, content in beside.items() if not isinstance(content, Path)}
        write(folder, images, beside)
        path = shutil.make_archive(str(folder), archive, folder) if archive else folder
        dataset = read(path)
        if not isinstance(dataset, str):
            check(dataset, images, folder)
        else:
            assert not clear, dataset
            assert "given" in dataset
            assert len(dataset) < 2000


WAYS = {
    "path": lambda path: path,
    "back-slashes": lambda path: path.replace("/", "\\"),
    "another machine": lambda path: f"/home/ann/{path}",
    "another system": lambda path: "C:\\Users\\" + path.replace("/", "\\"),
    "name": lambda path: Path(path).name,
    "without suffix": lambda path: os.path.splitext(path)[0],
}


@SETTINGS
@given(st.data(), CLASSES, st.sampled_from(sorted(WAYS)), st.sampled_from(("csv", "jsonl", "one-hot")), DAMAGES)
def test_table_at_random_is_read_as_it_is_meant(data, classes, way, form, damages):
    files = data.draw(class_folders([f"{number} {name}"[:40] for number, name in enumerate(classes)], deep=False))
    named = [WAYS[way](path) for path in files]
    assume(len({_form(Path(path).name) for path in files}) == len(files))
    labels = [classes[int(path[0])] for path in files]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "given"
        write(folder, files, {f"images/{name}": DAMAGE[name] for name in damages})
        columns = {"file": named, "label": labels}
        if form == "one-hot":
            columns = {"file": named} | {name: [int(label == name) for label in labels] for name in classes}
        path = folder / ("table.jsonl" if form == "jsonl" else "table.csv")
        if form == "jsonl":
            pd.DataFrame(columns).to_json(path, orient="records", lines=True)
        else:
            pd.DataFrame(columns).to_csv(path, index=False)
        dataset = read(path)
        assert not isinstance(dataset, str), dataset
        check(dataset, {path: ("", label) for path, label in zip(files, labels, strict=True)}, folder)
