import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import fomo
from fomo.data.datasets import Folder, load_dataset
from fomo.data.images import as_seen, for_each, store_pixels, to_pixels
from fomo.data.survey import survey


@pytest.fixture
def folder(tmp_path):
    """A toy data set that the test may damage."""
    return toys.write_dataset(tmp_path / "toy", train=4, test=2)


def stored(folder, path, side=16):
    """The pixels of the train images, and what is said of the damaged ones."""
    dataset = load_dataset(folder)
    return store(dataset, dataset.train["file"], path, side)


def store(dataset, files, path, side=16, **options):
    """The pixels of `files`, and what is said of the damaged ones."""
    found = survey(dataset)
    damaged = store_pixels(dataset, files, path, side, "reading", found.channels, found.ranges, **options)
    return np.load(path), damaged


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
    pixels, _ = stored(folder, tmp_path / "pixels.npy")
    assert (pixels.shape, pixels.dtype) == ((6, channels, 16, 16), np.uint8)


def test_one_coloured_image_among_grey_ones_keeps_its_colour(tmp_path):
    folder = toys.write_dataset(tmp_path / "toy", train=2, test=1, shape=(24, 24))
    Image.new("RGB", (24, 24), "red").save(folder / "images_train" / "000.png")
    assert stored(folder, tmp_path / "pixels.npy")[0][0].mean((1, 2)).tolist() == [255, 0, 0]


# ---- as a person sees them


RAMP = np.linspace(0, 255, 24 * 24).reshape(24, 24).round().astype(np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def seen(image: Image.Image, suffix: str, **options) -> tuple[str, np.ndarray]:
    """(mode, values) of what is seen of an image stored as a file of this suffix."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **options)
    with Image.open(buffer) as stored:
        result = as_seen(stored)
        return result.mode, np.asarray(result).astype(int)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_grey_ramp_looks_the_same_in_every_format(suffix):
    _, values = seen(Image.fromarray(RAMP), suffix)
    values = values if values.ndim == 2 else values.mean(2)
    assert np.abs(values - RAMP).max() <= 12


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_colours_are_kept_to_the_bit_in_lossless_formats(suffix):
    mode, values = seen(Image.fromarray(COLOURS), suffix)
    assert mode == "RGB"
    assert np.array_equal(values, COLOURS)


def test_black_and_white_image_is_grey():
    mode, values = seen(Image.fromarray(RAMP > 100), "png")
    assert mode == "L"
    assert np.array_equal(values, 255 * (RAMP > 100))


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_palette_is_looked_up(suffix):
    image = Image.fromarray(COLOURS).quantize(16)
    assert np.array_equal(seen(image, suffix)[1], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_entry_of_a_palette_is_white(suffix):
    image = Image.new("P", (24, 24), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 24, 12))
    values = seen(image, suffix, transparency=1)[1]
    assert values[0, 0].tolist() == [255, 255, 255]
    assert values[23, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (0, 0, 200)), ("LA", (60,))])
@pytest.mark.parametrize(("alpha", "share"), [(0, 0), (128, 128 / 255), (255, 1)])
def test_transparency_lets_white_through(mode, colour, alpha, share):
    values = seen(Image.new(mode, (24, 24), (*colour, alpha)), "png")[1]
    expected = [255 * (1 - share) + share * value for value in (colour * 3)[:3]]
    assert values[12, 12].tolist() == pytest.approx(expected, abs=1)


def test_colour_marked_as_transparent_is_white():
    image = Image.new("RGB", (24, 24), (0, 0, 200))
    image.paste((10, 20, 30), (0, 0, 24, 12))
    values = seen(image, "png", transparency=(0, 0, 200))[1]
    assert values[0, 0].tolist() == [10, 20, 30]
    assert values[23, 0].tolist() == [255, 255, 255]


def test_grey_marked_as_transparent_is_white():
    image = Image.new("L", (24, 24), 0)
    image.paste(90, (0, 0, 24, 12))
    values = seen(image, "png", transparency=0)[1]
    assert (values[0, 0].tolist(), values[23, 0].tolist()) == ([90, 90, 90], [255, 255, 255])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_printers_colours_are_those_on_paper(suffix):
    values = seen(Image.new("CMYK", (24, 24), (0, 255, 255, 0)), suffix)[1]
    assert values[12, 12].tolist() == pytest.approx([255, 0, 0], abs=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photograph_stands_upright_however_the_camera_was_held(orientation):
    turned = {
        **{1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180},
        **{4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90},
        **{7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270},
    }[orientation]
    image, exif = Image.fromarray(COLOURS), Image.Exif()
    exif[0x0112] = orientation
    image = image if turned is None else image.transpose(turned)
    assert np.array_equal(seen(image, "png", exif=exif)[1], COLOURS)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation_is_seen(suffix):
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    values = seen(frames[0], suffix, save_all=True, append_images=frames[1:], **options)[1]
    assert values.shape == (24, 24, 3)
    assert values[12, 12].tolist() == [255, 0, 0]


def test_decompression_bomb_is_refused_and_named(folder, tmp_path, monkeypatch):
    Image.new("RGB", (80, 80)).save(folder / "images_train" / "005.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40)
    damaged = stored(folder, tmp_path / "pixels.npy")[1]
    assert damaged["file"].tolist() == ["images_train/005.png"]
    assert damaged["reason"].str.contains("DecompressionBombError").all()


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("fit", ["crop", "squish", "pad"])
def test_very_long_image_is_not_blown_up(monkeypatch, fit, size):
    """Its short side is scaled up to what the network sees; its long side, at that scale, would not fit in memory."""
    sizes, resize = [], Image.Image.resize

    def note_size(image, size, *args, **kwargs):
        sizes.append((size[0], image.height))  # rows come first
        sizes.append(size)
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", note_size)
    pixels = to_pixels(Image.new("L", size, 7), 64, 1, fit=fit)
    expected = np.full((64, 64), 7)
    if fit == "pad":  # a line of one pixel
        expected[:, :31] = expected[:, 32:] = 0
    assert np.array_equal(pixels[0], expected if size[0] < size[1] else expected.T)
    assert max(width * height for width, height in sizes) <= 73 * max(73 * 8, 64)


def test_images_of_many_sizes_are_stored_in_the_order_asked(tmp_path):
    folder = toys.write_dataset(tmp_path / "toy", train=4, test=1)
    for number, size in enumerate([(1, 1), (500, 20), (20, 500), (333, 334)]):
        Image.new("RGB", size, (10 * number, 0, 0)).save(folder / "images_train" / f"00{number}.png")
    dataset = load_dataset(folder)
    files = dataset.train["file"][::-1]
    pixels, damaged = store(dataset, files, tmp_path / "pixels.npy")
    assert damaged.empty
    assert [int(image[0].max()) for image in pixels[::-1][:4]] == [0, 10, 20, 30]


# ---- damage


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
def test_image_that_cannot_be_decoded_is_named_and_its_row_is_black(folder, tmp_path, damage):
    damage(folder / "images_train" / "005.png")
    pixels, damaged = stored(folder, tmp_path / "pixels.npy")
    assert damaged["file"].tolist() == ["images_train/005.png"]
    assert damaged["reason"].str.len().between(5, 120).all()
    assert [row.max() == 0 for row in pixels] == [number == 5 for number in range(12)]


@pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_image_of_any_format_is_named(folder, tmp_path, suffix, kept):
    buffer = io.BytesIO()
    Image.fromarray(toys.draw(0)).save(buffer, suffix.replace("jpg", "jpeg"))
    content = buffer.getvalue()
    (folder / "images_train" / "005.png").write_bytes(content[: int(kept * len(content))])
    assert stored(folder, tmp_path / "pixels.npy")[1]["file"].tolist() == ["images_train/005.png"]


def test_reason_is_short_and_holds_no_path_of_the_machine(folder, tmp_path):
    (folder / "images_train" / "001.png").unlink()
    (folder / "images_train" / "002.png").write_bytes(b"")
    (folder / "images_train" / "003.png").unlink()
    (folder / "images_train" / "003.png").mkdir()
    damaged = stored(folder, tmp_path / "pixels.npy")[1]
    assert damaged["reason"].tolist() == [
        "no such file or directory",
        "not an image, or its header is damaged",
        "is a directory",
    ]


def test_file_that_may_not_be_read_is_named(folder, tmp_path, monkeypatch):
    opened = Folder.open

    def refuse(source, file):
        if file.endswith("004.png"):
            raise PermissionError(13, "Permission denied", str(folder / file))
        return opened(source, file)

    monkeypatch.setattr(Folder, "open", refuse)
    damaged = stored(folder, tmp_path / "pixels.npy")[1]
    assert damaged.to_numpy().tolist() == [["images_train/004.png", "permission denied"]]


# What cannot be a file's name anywhere, or hides it; names that are no UTF-8 come as Python reads them from the disk.
NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.binary(min_size=1, max_size=20).map(os.fsdecode),
).filter(lambda name: not set(name) & set("/\0") and not name.startswith("."))
DAMAGES = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8)),
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("text"), st.text(max_size=50)),
    st.tuples(st.just("folder"), st.none()),
    st.tuples(st.just("no damage"), st.none()),
)
FORMATS = ("png", "jpeg", "gif", "bmp", "tiff", "webp")
GOOD = [f"good{number}.png" for number in range(4)]


def write_damaged(path, image: Image.Image, form: str, damage: tuple) -> None:
    buffer = io.BytesIO()
    image.save(buffer, form)
    content, (kind, detail) = bytearray(buffer.getvalue()), damage
    if kind == "flip":
        for place in detail:
            bit = int(place * len(content) * 8)
            content[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        content = content[: int(detail * len(content))]
    elif kind == "text":
        content = detail.encode()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)


def is_readable(path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(
        NAMES,
        st.tuples(st.sampled_from(FORMATS), st.sampled_from((".jpg", ".png", ".tif")), DAMAGES),
        min_size=1,
        max_size=6,
    )
)
def test_damage_at_random_is_named_and_harms_nothing_else(damages):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        for label, name in enumerate(("猫", "dog")):
            (folder / name).mkdir(parents=True)
            for number, file in enumerate(GOOD):
                Image.fromarray(toys.draw(label, seed=number)).save(folder / name / file)
        before = rows(folder)
        for name, (form, suffix, damage) in damages.items():
            write_damaged(folder / "dog" / f"{name}{suffix}", Image.fromarray(toys.draw(1, seed=9)), form, damage)
        after = rows(folder)
        inspection = fomo.inspect(str(folder))
        assert not [file for file, pixels in before.items() if not np.array_equal(after[file], pixels)]
        unreadable = {
            f"dog/{path.name}" for path in (folder / "dog").iterdir() if not path.is_dir() and not is_readable(path)
        }
        assert unreadable <= {file for file, pixels in after.items() if isinstance(pixels, str)}
        assert all(pixels for pixels in after.values() if isinstance(pixels, str))
        assert unreadable <= set(inspection.images["file"][inspection.images["reason"].notna()])


def rows(folder) -> dict[str, np.ndarray | str]:
    """The pixels of each image of both splits, or why it cannot be read."""
    dataset = load_dataset(folder)
    files = pd.concat([dataset.train["file"], dataset.test()["file"]])
    pixels, damaged = store(dataset, files, folder.with_name("pixels.npy"))
    return dict(zip(files, pixels, strict=True)) | dict(zip(damaged["file"], damaged["reason"], strict=True))


def test_crop_keeps_the_middle_share_of_the_shorter_side():
    pixels = np.zeros((40, 80), np.uint8)
    pixels[10:30, 30:50] = 255  # the middle half of the shorter side
    image = Image.fromarray(pixels)
    assert to_pixels(image, 20, 1, 0.5).min() > 200
    whole = to_pixels(image, 40, 1, 1.0)[0]
    assert np.array_equal(whole, pixels[:, 20:60])


# ---- how an image becomes a square


@pytest.fixture
def wide():
    """300 x 60 pixels, green, whose left end is red and whose right end is blue, each 30 pixels wide."""
    image = Image.new("RGB", (300, 60), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 30, 60))
    image.paste((0, 0, 255), (270, 0, 300, 60))
    return image


RED, GREEN, BLUE, BLACK = [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]


def colours(pixels: np.ndarray, places: list[tuple[int, int]]) -> list[list[int]]:
    """The colour at each (row, column)."""
    return [pixels[:, row, column].tolist() for row, column in places]


def test_crop_loses_the_ends_of_a_wide_image(wide):
    pixels = to_pixels(wide, 60, 3, 1.0, "crop")
    assert np.array_equal(pixels, np.broadcast_to(np.reshape(GREEN, (3, 1, 1)), (3, 60, 60)))


def test_squish_keeps_all_of_a_wide_image_distorted(wide):
    pixels = to_pixels(wide, 60, 3, 1.0, "squish")
    for row in (0, 30, 59):
        assert colours(pixels, [(row, 0), (row, 4), (row, 30), (row, 55), (row, 59)]) == [RED, RED, GREEN, BLUE, BLUE]


def test_pad_keeps_all_of_a_wide_image_between_black_bars(wide):
    pixels = to_pixels(wide, 60, 3, 1.0, "pad")
    for row in (24, 30, 35):
        assert colours(pixels, [(row, 0), (row, 4), (row, 30), (row, 55), (row, 59)]) == [RED, RED, GREEN, BLUE, BLUE]
    assert not pixels[:, :24].any()
    assert not pixels[:, 36:].any()
    high = wide.transpose(Image.Transpose.TRANSPOSE)
    assert np.array_equal(to_pixels(high, 60, 3, 1.0, "pad"), pixels.swapaxes(1, 2))


@pytest.mark.parametrize("fit", ["squish", "pad"])
def test_middle_of_what_was_fitted_is_kept(wide, fit):
    """Half of it: so of each end nothing is left, and of the bars the inner part."""
    whole = to_pixels(wide, 60, 3, 1.0, fit)
    assert np.array_equal(to_pixels(wide, 30, 3, 0.5, fit), whole[:, 15:45, 15:45])


@pytest.mark.parametrize("fit", ["crop", "squish", "pad"])
def test_square_image_is_fitted_in_one_way_only(fit):
    image = Image.fromarray(COLOURS)
    assert np.array_equal(to_pixels(image, 14, 3, fit=fit), to_pixels(image, 14, 3))
    assert np.array_equal(to_pixels(image, 24, 3, 1.0, fit), COLOURS.transpose(2, 0, 1))


@pytest.mark.parametrize("fit", ["squish", "pad"])
def test_ends_of_a_very_long_image_are_kept(fit):
    image = Image.new("L", (1, 20_000), 100)
    image.paste(250, (0, 0, 1, 1000))
    image.paste(200, (0, 19_000, 1, 20_000))
    rows = to_pixels(image, 64, 1, 1.0, fit)[0].max(axis=1)  # so that the bars do not count
    assert rows[[0, 1, 32, 62, 63]].tolist() == [250, 250, 100, 200, 200]


@pytest.mark.parametrize("fit", ["crop", "squish", "pad"])
def test_images_are_stored_as_they_are_fitted(folder, wide, tmp_path, fit):
    wide.save(folder / "images_train" / "000.png")
    dataset = load_dataset(folder)
    pixels, damaged = store(dataset, dataset.train["file"], tmp_path / "pixels.npy", crop=1.0, fit=fit)
    assert damaged.empty
    assert np.array_equal(pixels[0], to_pixels(wide, 16, 3, 1.0, fit))


# ---- one after another


def test_results_come_in_order_and_only_few_are_held():
    drawn = []

    def draw():
        for number in range(200):
            drawn.append(number)
            yield number

    results = for_each(lambda number: 2 * number, draw())
    assert next(results) == 0
    assert len(drawn) <= 8 * os.cpu_count() + 1
    assert list(results) == list(range(2, 400, 2))


def test_bars_are_shown_unless_there_is_no_description_or_tqdm_is_told(capsys):
    list(for_each(str, [1, 2], "reading"))
    assert "reading" in capsys.readouterr().err
    list(for_each(str, [1, 2]))
    assert capsys.readouterr().err == ""
    code = "from fomo.data.images import for_each; list(for_each(str, [1, 2], 'reading'))"
    command, environment = [sys.executable, "-c", code], os.environ | {"TQDM_DISABLE": "1"}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr == ""
