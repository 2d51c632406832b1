import io
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from fomo.config import ROOT, UserError
from fomo.data import (
    FeatureBatches,
    ImageBatches,
    augment,
    load_dataset,
    loader,
    split,
    store_pixels,
    to_pixels,
    unpack,
)

TABLE = pd.DataFrame(
    {"file": [f"{number:03}.png" for number in range(112)], "label": [0] * 60 + [1] * 43 + [2] * 7 + [3] * 2}
)


@pytest.fixture
def folder(tmp_path):
    """A toy data set that the test may damage."""
    return toys.write_dataset(tmp_path / "toy", train=4, test=2)


def stored(folder, path, side=16):
    dataset = load_dataset(folder)
    store_pixels(dataset, dataset.train["file"], path, side, "reading")
    return np.load(path)


# ---- the split


def test_split_is_stratified():
    shares = split(TABLE, 0.2, seed=0).groupby("label")["split"].agg(lambda part: (part == "validation").sum())
    assert shares.tolist() == [12, 9, 1, 1]


def test_split_holds_every_image_once():
    images = split(TABLE, 0.2, seed=0)
    assert images["file"].tolist() == TABLE["file"].tolist()
    assert images["label"].tolist() == TABLE["label"].tolist()
    assert set(images["split"]) == {"train", "validation"}


@pytest.mark.parametrize("share", [0.01, 0.2, 0.99])
def test_each_class_has_an_image_on_either_side(share):
    assert (split(TABLE, share, seed=0).groupby("label")["split"].nunique() == 2).all()


def test_split_is_the_same_for_the_same_seed_whatever_the_order_of_the_files():
    shuffled = TABLE.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(split(TABLE, 0.2, seed=3), split(shuffled, 0.2, seed=3))


def test_another_seed_makes_another_split():
    assert (split(TABLE, 0.2, seed=0)["split"] != split(TABLE, 0.2, seed=1)["split"]).any()


# ---- pixels


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (20, 20)])
def test_pixels_are_those_of_torchvisions_resize_and_center_crop(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = v2.CenterCrop(28)(v2.Resize(32)(image))
    assert np.array_equal(to_pixels(image, 28, 3), np.asarray(expected).transpose(2, 0, 1))


def test_photograph_taken_sideways_stands_upright(tmp_path):
    upright = Image.fromarray(np.kron([[250, 200], [100, 20]], np.ones((16, 16))).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.rotate(90, expand=True).save(tmp_path / "sideways.png", exif=exif)
    with Image.open(tmp_path / "sideways.png") as sideways:
        assert np.array_equal(to_pixels(sideways, 24, 1), to_pixels(upright, 24, 1))


@pytest.mark.parametrize(("shape", "channels"), [((24, 24), 1), ((24, 24, 3), 3)])
def test_grey_images_are_stored_with_one_channel_and_coloured_ones_with_three(tmp_path, shape, channels):
    folder = toys.write_dataset(tmp_path / "toy", train=2, test=1, shape=shape)
    pixels = stored(folder, tmp_path / "pixels.npy")
    assert (pixels.shape, pixels.dtype) == ((6, channels, 16, 16), np.uint8)


def test_one_coloured_image_among_grey_ones_keeps_its_colour(tmp_path):
    folder = toys.write_dataset(tmp_path / "toy", train=2, test=1, shape=(24, 24))
    Image.new("RGB", (24, 24), "red").save(folder / "images_train" / "000.png")
    assert stored(folder, tmp_path / "pixels.npy")[0].mean((1, 2)).tolist() == [255, 0, 0]


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    ramp = np.linspace(0, 65535, 24 * 24).reshape(24, 24)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as deep:
        assert np.allclose(
            to_pixels(deep, 24, 1), to_pixels(Image.fromarray((ramp / 257).astype(np.uint8)), 24, 1), atol=2
        )


# ---- augmentation


@pytest.mark.parametrize("seed", range(6))
def test_augment_is_torchvisions_rotation_and_flip(seed):
    images = torch.rand(8, 3, 17, 17)
    augmented = augment(images, 30.0, torch.Generator().manual_seed(seed))
    draws = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand(8, generator=draws) - 1) * 30
    flips = torch.rand(8, generator=draws) < 0.5
    for image, angle, flip, result in zip(images, angles, flips, augmented, strict=True):
        expected = transforms.rotate(image, angle.item(), interpolation=v2.InterpolationMode.BILINEAR)
        expected = transforms.horizontal_flip(expected) if flip else expected
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_angles_fill_the_range_and_half_the_images_are_flipped():
    dot = torch.zeros(400, 1, 65, 65)
    dot[:, :, 32, 56:] = 1  # a mark on the right, at angle 0
    places = augment(dot, 30.0, torch.Generator().manual_seed(0))[:, 0].flatten(1).argmax(1)
    x, y = places % 65 - 32, 32 - places // 65
    angles = torch.rad2deg(torch.atan2(y.float(), x.abs().float()))
    assert 0.4 < (x < 0).float().mean() < 0.6
    assert angles.abs().max() < 31.5
    assert angles.min() < -25
    assert angles.max() > 25


@pytest.mark.parametrize("channels", [1, 3])
def test_batch_is_normalised_and_has_three_channels(channels):
    pixels = np.full((4, channels, 8, 8), 255, np.uint8)
    images, labels = ImageBatches(pixels, [0, 1, 2, 1], (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))[[1, 3]]
    assert images.mean((0, 2, 3)).tolist() == [1, 3, 1]
    assert labels.tolist() == [1, 1]


def test_only_batches_with_a_generator_are_augmented():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "rotation": 30.0}
    plain = ImageBatches(pixels, [0] * 4, **options)
    train = ImageBatches(pixels, [0] * 4, **options, generator=torch.Generator().manual_seed(0))
    rows = [0, 1, 2, 3]
    assert torch.equal(plain[rows][0], torch.from_numpy(pixels) / 255)
    assert not torch.equal(train[rows][0], plain[rows][0])


def test_generator_alone_decides_the_batches_of_an_epoch():
    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)
        batches = ImageBatches(pixels, range(9), (0.0,) * 3, (1.0,) * 3, rotation=30.0, generator=generator)
        return torch.cat([images for images, _ in loader(batches, 4, generator)])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0)[:8], epoch(1)[:8])


def test_loader_without_a_generator_keeps_the_order_and_every_image():
    labels = [label for _, batch in loader(FeatureBatches(np.zeros((9, 2)), range(9)), 4) for label in batch.tolist()]
    assert labels == list(range(9))


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2])])
def test_training_never_sees_a_batch_of_one_image(count, sizes):
    batches = loader(FeatureBatches(np.zeros((count, 2)), range(count)), 4, torch.Generator())
    assert [len(labels) for _, labels in batches] == sizes


# ---- bad input


def test_data_set_without_names_of_classes_takes_its_labels_for_names(folder):
    (folder / "classes.txt").unlink()
    assert load_dataset(folder).classes == ["0", "1", "2"]


def test_unknown_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no train\.csv"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00\x01", b'image_file_name,label\na.png,0\nb.png,"0'])
def test_unreadable_table_is_refused_by_name(folder, content):
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv"):
        load_dataset(folder)


def test_missing_column_is_named(folder):
    (folder / "train.csv").write_text("image,label\n000.png,0\n")
    with pytest.raises(UserError, match="lacks the column image_file_name; it has image, label"):
        load_dataset(folder)


def test_missing_file_is_named(folder):
    (folder / "images_train" / "003.png").unlink()
    with pytest.raises(UserError, match=r"train\.csv names images_train/003\.png, not found in"):
        load_dataset(folder)


def test_many_missing_files_are_counted(folder):
    shutil.rmtree(folder / "images_train")
    with pytest.raises(UserError, match=r"000\.png, .*001\.png, .*002\.png and 9 more, not found"):
        load_dataset(folder)


@pytest.mark.parametrize("label", ["-1", "1.5", "cat", "", " 1", "1e3", "99999999999999999999"])
def test_label_that_is_not_an_integer_from_0_is_named_with_its_line(folder, label):
    toys.write_csv(folder, "train", ["000.png", "001.png", "002.png"], ["0", label, "1"])
    with pytest.raises(UserError, match=rf"has '{label}' as a label \(line 3 first\)"):
        load_dataset(folder)


def test_label_beyond_the_names_of_classes_is_refused(folder):
    toys.write_csv(folder, "train", ["000.png", "001.png", "002.png"], [0, 3, 1])
    with pytest.raises(UserError, match="has the label 3, but there are 3 classes: 0 to 2"):
        load_dataset(folder)


@pytest.mark.parametrize(("labels", "count"), [([0, 0, 1, 1, 2], 1), ([0, 0, 1, 1], 0)])
def test_class_with_fewer_than_2_images_is_named(folder, labels, count):
    toys.write_csv(folder, "train", [f"{number:03}.png" for number in range(len(labels))], labels)
    with pytest.raises(UserError, match=rf"class 2 \('bottom'\) has {count} images"):
        load_dataset(folder)


def test_data_set_of_one_class_is_refused(folder):
    (folder / "classes.txt").write_text("top\n")
    toys.write_csv(folder, "train", ["000.png", "001.png"], [0, 0])
    with pytest.raises(UserError, match="one class 'top'"):
        load_dataset(folder)


def text(path):
    path.write_text("not an image")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def broken_chunk(path):
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [text, empty, truncated, broken_chunk])
def test_image_that_cannot_be_decoded_is_named_and_nothing_is_stored(folder, tmp_path, damage):
    damage(folder / "images_train" / "005.png")
    with pytest.raises(UserError, match=r"cannot decode images_train/005\.png"):
        stored(folder, tmp_path / "pixels.npy")
    assert not list(tmp_path.glob("*pixels*"))


@pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_image_of_any_format_is_an_error_that_names_it(folder, tmp_path, suffix, kept):
    buffer = io.BytesIO()
    Image.fromarray(toys.draw(0)).save(buffer, suffix.replace("jpg", "jpeg"))
    content = buffer.getvalue()
    (folder / "images_train" / "005.png").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"images_train/005\.png"):
        stored(folder, tmp_path / "pixels.npy")


# ---- archives


def add_file(tar, name):
    member = tarfile.TarInfo(name)
    member.size = 4
    tar.addfile(member, io.BytesIO(b"evil"))


def add_link(tar, kind):
    member = tarfile.TarInfo("toy/link")
    member.type, member.linkname = kind, "/etc/passwd"
    tar.addfile(member)


EVIL = {
    "parent": lambda tar: add_file(tar, "../evil"),
    "deep parent": lambda tar: add_file(tar, "images_train/../../evil"),
    "symbolic link": lambda tar: add_link(tar, tarfile.SYMTYPE),
    "hard link": lambda tar: add_link(tar, tarfile.LNKTYPE),
    "device": lambda tar: add_link(tar, tarfile.CHRTYPE),
    "pipe": lambda tar: add_link(tar, tarfile.FIFOTYPE),
}


@pytest.fixture
def archive(folder, tmp_path):
    path = tmp_path / "toy.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)
    return path


def test_archive_unpacks_to_its_data_set(archive, folder, tmp_path):
    unpack(archive, tmp_path / "unpacked")
    pd.testing.assert_frame_equal(load_dataset(tmp_path / "unpacked").train, load_dataset(folder).train)


@pytest.mark.parametrize("evil", EVIL)
def test_archive_that_reaches_outside_is_refused_and_leaves_nothing(tmp_path, evil):
    (tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / "evil.tgz", "w:gz") as tar:
        add_file(tar, "train.csv")
        EVIL[evil](tar)
    with pytest.raises(UserError, match=r"evil\.tgz"):
        unpack(tmp_path / "evil.tgz", tmp_path / "inside" / "toy")
    assert list((tmp_path / "inside").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_absolute_path_in_an_archive_does_not_land_there(tmp_path):
    (tmp_path / "inside").mkdir()
    with tarfile.open(tmp_path / "evil.tgz", "w:gz") as tar:
        add_file(tar, str(tmp_path / "evil"))
    with pytest.raises(UserError, match=r"evil\.tgz"):
        unpack(tmp_path / "evil.tgz", tmp_path / "inside" / "toy")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.99])
def test_truncated_archive_is_refused_and_leaves_nothing(archive, tmp_path, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    (tmp_path / "inside").mkdir()
    with pytest.raises(UserError, match=r"toy\.tgz cannot be unpacked"):
        unpack(archive, tmp_path / "inside" / "toy")
    assert list((tmp_path / "inside").iterdir()) == []


def test_committed_sample_is_stratified(tmp_path):
    unpack(ROOT / "data" / "fashion_sample.tgz", tmp_path / "sample")
    sample = load_dataset(tmp_path / "sample")
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


def relabel(folder):
    table = pd.read_csv(folder / "train.csv")
    table.loc[0, "label"] = 1
    table.to_csv(folder / "train.csv", index=False)


@pytest.mark.parametrize("change", [repaint, rename_class, relabel])
def test_fingerprint_tells_changed_data(folder, change):
    before = load_dataset(folder).fingerprint()
    change(folder)
    assert load_dataset(folder).fingerprint() != before


def test_test_split_is_read_on_demand_only(folder):
    (folder / "test.csv").unlink()
    dataset = load_dataset(folder)
    with pytest.raises(UserError, match=r"has no test\.csv"):
        dataset.test()
