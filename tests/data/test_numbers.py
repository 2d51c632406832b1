"""Images of other numbers than 8 bits: the same shades come back from whatever kind of number a file holds."""

import struct
import zlib

import numpy as np
import pytest
import toys
from PIL import Image

from fomo.config import UserError
from fomo.data.datasets import load_dataset
from fomo.data.images import as_seen, store_pixels
from fomo.data.numbers import COLOUR, kind_of, range_from
from fomo.data.survey import survey

SHADES = np.linspace(0, 255, 24 * 24).reshape(24, 24).round().astype(np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
SIGNED = {339: 2}  # a tag of a TIFF


def write(path, array: np.ndarray, tags=None) -> None:
    """Stores a grey image of any numbers."""
    if array.dtype == np.int8:
        Image.fromarray(array.view(np.uint8)).save(path, tiffinfo=tags or SIGNED)
    elif array.dtype in (np.int16, np.uint32):  # which Pillow reads, but does not write
        write_tiff(path, array)
    else:
        Image.fromarray(array).save(path, **({"tiffinfo": tags} if tags else {}))


def write_tiff(path, array: np.ndarray, order: str = "<", *, compressed: bool = False) -> None:
    """Stores integers (height, width) or (height, width, channels) as a TIFF by hand."""
    channels = array.shape[2] if array.ndim == 3 else 1
    content = array.astype(array.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if compressed else content
    bits = struct.pack(order + "H" * channels, *[8 * array.itemsize] * channels).ljust(4, b"\0")
    entries = [(256, array.shape[1]), (257, array.shape[0]), (258, bits), (259, 8 if compressed else 1)]
    entries += [(262, 2 if channels > 1 else 1), (273, None), (277, channels), (278, array.shape[0])]
    entries += [(279, len(content))] + [(338, 2)] * (channels == 4) + [(339, 2 if array.dtype.kind == "i" else 1)]
    end = 8 + 2 + 12 * len(entries) + 4
    folder = struct.pack(order + "H", len(entries))
    for tag, value in entries:
        if tag == 258:
            folder += struct.pack(order + "HHI", tag, 3, channels)
            folder += bits if channels < 3 else struct.pack(order + "I", end)
        else:
            folder += struct.pack(order + "HHII", tag, 4, 1, end + len(bits) if value is None else value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    path.write_bytes(head + folder + bytes(4) + bits + content)


def write_png(path, array: np.ndarray) -> None:
    """Stores a colour image of 16 bits a channel as a PNG by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2 if array.shape[2] == 3 else 6, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path):
    """Writes a data set of 30 train images (and as many test images) whose shades are stored as told; its folder."""

    def make(convert, suffix="tif", store=write):
        path = tmp_path / "toy"
        for split in ("train", "test"):
            names = [f"{number:02}.{suffix}" for number in range(30)]
            (path / f"images_{split}").mkdir(parents=True)
            toys.write_csv(path, split, names, [number % 2 for number in range(30)])
            for number, name in enumerate(names):
                store(path / f"images_{split}" / name, convert(np.roll(SHADES, number, axis=0)))
        return path

    return make


def pixels(folder, tmp_path) -> np.ndarray:
    """The train images (images, 24, 24) as stored."""
    dataset = load_dataset(str(folder))
    found = survey(dataset)
    options = {"channels": found.channels, "ranges": found.ranges, "crop": 1.0}
    assert store_pixels(dataset, dataset.train["file"], tmp_path / "pixels.npy", 24, "reading", **options).empty
    stored = np.load(tmp_path / "pixels.npy")
    assert stored.shape[1] == 1  # grey
    return stored[:, 0].astype(int)


STORED = {
    "12 bits": ("tif", lambda shades: (shades * 16.05).astype(np.uint16), 1),
    "12 bits, png": ("png", lambda shades: (shades * 16.05).astype(np.uint16), 1),
    "16 bits": ("tif", lambda shades: shades.astype(np.uint16) * 257, 0),
    "16 bits, dark": ("png", lambda shades: shades.astype(np.uint16) + 100, 2),
    "16 bits, signed": ("tif", lambda shades: shades.astype(np.int16) * 100 - 12000, 2),
    "8 bits, signed": ("tif", lambda shades: (shades.astype(np.int16) - 128).astype(np.int8), 2),
    "32 bits": ("tif", lambda shades: shades.astype(np.int32) * 100_000 - 10**7, 2),
    "32 bits, unsigned": ("tif", lambda shades: shades.astype(np.uint32) * 16_000_000, 2),
    "32 bits, of 8": ("tif", lambda shades: shades.astype(np.int32), 0),
    "floats to 1": ("tif", lambda shades: (shades / 255).astype(np.float32), 0),
    "floats to 255": ("tif", lambda shades: shades.astype(np.float32), 0),
    "floats to 1e-6": ("tif", lambda shades: (shades * 1e-6 / 255).astype(np.float32), 2),
    "floats below 0": ("tif", lambda shades: -(1000 - shades.astype(np.float32)), 2),
}


@pytest.mark.parametrize("name", STORED)
def test_shades_come_back_from_every_kind_of_number(folder, tmp_path, name):
    suffix, convert, tolerance = STORED[name]
    found = pixels(folder(convert, suffix), tmp_path)
    assert np.abs(found[0] - SHADES).max() <= tolerance


def test_set_of_eight_bits_has_no_range_and_stays_as_it_is(folder, tmp_path):
    made = folder(lambda shades: shades // 8, "png")
    assert survey(load_dataset(str(made))).ranges == {}
    assert np.array_equal(pixels(made, tmp_path)[0], SHADES // 8)


@pytest.mark.parametrize("defect", [np.nan, np.inf, -np.inf, 7.0, -7.0, 1e9, -3.4e38])
def test_defect_of_one_pixel_changes_that_pixel_only(folder, tmp_path, defect):
    def convert(shades):
        values = (shades / 255).astype(np.float32)
        values[5, 5] = defect
        return values

    found = pixels(folder(convert), tmp_path)[0]
    assert found[5, 5] in (0, 255)
    assert np.array_equal(np.delete(found, 5 * 24 + 5), np.delete(SHADES, 5 * 24 + 5))


def test_image_of_other_units_does_not_decide_the_range(folder, tmp_path):
    made = folder(lambda shades: (shades / 255).astype(np.float32))
    write(made / "images_train" / "07.tif", (SHADES * 1e6).astype(np.float32))
    assert np.array_equal(pixels(made, tmp_path)[0], SHADES)


def test_brightness_of_an_image_is_kept_beside_the_others(folder, tmp_path):
    made = folder(lambda shades: shades.astype(np.uint16) * 16)
    write(made / "images_train" / "03.tif", (SHADES // 8).astype(np.uint16) * 16)
    assert np.abs(pixels(made, tmp_path)[3] - SHADES // 8).max() <= 1


def test_number_that_a_file_names_as_none_is_black_and_out_of_the_range(folder, tmp_path):
    def convert(shades):
        return np.where(shades < 100, np.float32(-9999), shades)

    made = folder(convert, store=lambda path, array: write(path, array, {42113: "-9999"}))
    assert survey(load_dataset(str(made))).ranges == {"float32": (0, 255)}
    assert np.array_equal(pixels(made, tmp_path)[0], np.where(SHADES < 100, 0, SHADES))


def test_test_images_do_not_decide_the_range(folder):
    made = folder(lambda shades: shades.astype(np.uint16))
    for number in range(30):
        write(made / "images_test" / f"{number:02}.tif", np.full((24, 24), 60_000, np.uint16))
    assert survey(load_dataset(str(made))).ranges == {"uint16": (0, 255)}


def test_each_kind_of_a_mixed_set_has_a_range_of_its_own(folder, tmp_path):
    made = folder(lambda shades: (shades * 16.05).astype(np.uint16))
    for number in range(0, 30, 2):
        Image.fromarray(SHADES).save(made / "images_train" / f"{number:02}.tif")
    write(made / "images_train" / "01.tif", SHADES.astype(np.float32) / 255)
    found = pixels(made, tmp_path)
    assert survey(load_dataset(str(made))).ranges == {"float32": (0, 1), "uint16": (0, 4095)}
    for row in (0, 1):
        assert np.array_equal(found[row], SHADES)
    assert np.abs(found[3] - np.roll(SHADES, 3, axis=0)).max() <= 1


def test_kind_that_train_lacks_is_refused_by_name(tmp_path):
    write(tmp_path / "counts.tif", SHADES.astype(np.uint16))
    with Image.open(tmp_path / "counts.tif") as image, pytest.raises(UserError, match=r"uint16.*8 bits .*, float32"):
        as_seen(image, {"float32": (0, 1)})


# ---- colours of 16 bits, of which Pillow reads 8

WAYS = {
    "png": ("png", write_png),
    "tiff": ("tif", write_tiff),
    "tiff, big-endian": ("tif", lambda path, array: write_tiff(path, array, ">")),
    "tiff, compressed": ("tif", lambda path, array: write_tiff(path, array, compressed=True)),
    "tiff, big-endian, compressed": ("tif", lambda path, array: write_tiff(path, array, ">", compressed=True)),
}


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_colours_of_twelve_bits_are_not_black(tmp_path, way, alpha):
    suffix, store = WAYS[way]
    counts = (COLOURS * 16.05).astype(np.uint16)
    counts = np.dstack([counts, np.full((24, 24), 65535, np.uint16)]) if alpha else counts
    store(tmp_path / f"0.{suffix}", counts)
    with Image.open(tmp_path / f"0.{suffix}") as image:
        assert kind_of(image) == COLOUR
        assert np.abs(np.asarray(as_seen(image, {COLOUR: (0, 4095)})).astype(int) - COLOURS).max() <= 1


def test_colours_that_fill_sixteen_bits_are_what_pillow_reads(tmp_path):
    write_png(tmp_path / "0.png", COLOURS.astype(np.uint16) * 257)
    with Image.open(tmp_path / "0.png") as image:
        assert np.array_equal(as_seen(image, {COLOUR: (0, 65535)}), COLOURS)


def test_range_of_a_set_of_colours_is_found(folder):
    made = folder(lambda shades: np.dstack([shades.astype(np.uint16) * 16] * 3), "png", write_png)
    found = survey(load_dataset(str(made)))
    assert (found.ranges, found.channels) == ({COLOUR: (0, 4095)}, 3)


# ---- the range


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([(0, 4000)] * 5, (0, 4095)),
        ([(0, 4096)] * 5, (0, 4096)),  # no scale that people use
        ([(0, 1500)] * 5, (0, 1500)),  # too little of one
        ([(31_768, 35_768)] * 5, (31_768, 35_768)),
        ([(-1, 1)] * 5, (-1, 1)),
        ([(0.2, 0.9)] * 9 + [(0, 1e9)], (0, 1)),
        ([(0, 10), (20, 30)], (0, 30)),
        ([(7, 7)] * 5, (7, 8)),
    ],
)
def test_range_is_that_of_nearly_all_images(ends, expected):
    assert range_from(ends) == expected
