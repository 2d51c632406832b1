"""Labels that are perhaps wrong, near duplicates of two classes, images unlike all others."""

import shutil

import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

import fomo
from fomo.stages import planning
from fomo.stages.forecast import looked_at
from fomo.stages.suspecting import confident, confident_learning, cross_validated

PLAIN = {"members": 1, "first_epochs": 0, "trials": 0, "darts_epochs": 0, "epochs": 1, "final": "validation"}
PROBABILITIES = np.array(
    [
        *([0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.4, 0.6, 0.0]),  # of the first class
        *([0.2, 0.8, 0.0], [0.3, 0.7, 0.0], [0.6, 0.4, 0.0]),  # of the second; the third has no image
    ]
)
LABELS = np.array([0, 0, 0, 0, 1, 1, 1])


# ---- confident learning


def test_label_counts_as_wrong_where_another_class_passes_its_threshold():
    """The thresholds are 0.55 and 1.9 / 3: image 3 passes neither, image 6 that of the first class."""
    assert confident(PROBABILITIES, LABELS).tolist() == [False, False, True, False, False, False, True]


def test_as_many_are_named_as_count_and_those_first_whose_label_is_least_probable():
    images, suggested = confident_learning(PROBABILITIES, LABELS)
    assert images.tolist() == [2, 3]
    assert suggested.tolist() == [1, 1]


def test_where_every_label_is_the_most_probable_class_none_is_named():
    assert confident_learning(np.eye(3)[LABELS], LABELS)[0].size == 0


# ---- probabilities of images that were not learned from


def clusters(count=60):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return np.eye(3)[labels] * 5 + rng.normal(0, 0.3, (count, 3)), labels


def test_planted_mislabels_are_found_and_nothing_else():
    features, labels = clusters()
    given = labels.copy()
    given[[4, 17, 30]] = [2, 0, 1]
    images, suggested = confident_learning(cross_validated(features, given, np.arange(60), 3, seed=0), given)
    assert sorted(images) == [4, 17, 30]
    assert suggested.tolist() == labels[images].tolist()


def test_image_does_not_vouch_for_another_one_of_its_group():
    """Twenty views of one thing have all the same wrong label, and nothing else in the class looks like them."""
    rng = np.random.default_rng(0)
    features, labels = clusters()
    views = np.array([0.0, 5.0, 0.0]) + rng.normal(0, 0.01, (8, 3))
    features, labels = np.concatenate([features, views]), np.concatenate([labels, np.zeros(8, int)])
    groups = np.concatenate([np.arange(60), np.full(8, 60)])
    assert (cross_validated(features, labels, groups, 3, seed=0)[60:, 0] < 0.5).all()


def test_label_of_a_class_with_few_images_is_believed_and_no_other_image_is_said_to_be_of_it():
    features, labels = clusters()
    labels[[0, 3]] = 3
    told = cross_validated(features, labels, np.arange(60), 4, seed=0)
    assert told[[0, 3], 3].tolist() == [1, 1]
    assert told[labels != 3, 3].max() == 0
    assert told.sum(axis=1) == pytest.approx(np.ones(60))


@pytest.mark.parametrize("count", [3, 10, 11])
def test_few_images_are_judged_without_an_error(count):
    features, labels = clusters(count)
    told = cross_validated(features, labels, np.arange(count), 3, seed=0)
    assert told[np.arange(count), labels] == pytest.approx(np.ones(count))


# ---- the stage


def test_few_minutes_are_for_fewer_images():
    assert [looked_at(10**6, minutes) for minutes in (0, 60, 2)] == [20_000, 20_000, 1250]
    assert looked_at(500, 2) == 500


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A run on images of which four are wrong: two labels, a brighter copy under another label, and a chessboard."""
    folder = toys.write_dataset(tmp_path_factory.mktemp("spoiled") / "data", train=20, test=2)
    table = pd.read_csv(folder / "train.csv")
    table.loc[[0, 10], "label"] = [2, 0]
    pixels = np.asarray(Image.open(folder / "images_train" / "020.png"))
    Image.fromarray(pixels + 5).save(folder / "images_train" / "copy.png")
    chessboard = np.kron(np.indices((4, 4)).sum(axis=0) % 2, np.full((6, 6), 255)).astype(np.uint8)
    Image.fromarray(chessboard).save(folder / "images_train" / "chess.png")
    added = pd.DataFrame({"image_file_name": ["copy.png", "chess.png"], "label": [0, 1]})
    pd.concat([table, added]).to_csv(folder / "train.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = toys.tiny_run(folder, **toys.SHORT | PLAIN)
        return run, fomo.suspects(run)


@pytest.fixture
def anew(copied):
    """The toy run of two networks, finished but for its suspects."""
    shutil.rmtree(copied.folder / "13_suspects")
    return copied


def named(table: pd.DataFrame, kind: str) -> dict:
    part = table[table["kind"] == kind]
    return {file.removeprefix("images_train/"): row for file, row in zip(part["file"], part.itertuples(), strict=True)}


def test_changed_labels_of_a_data_set_are_found_with_their_true_class(spoiled):
    found = named(spoiled[1], "label")
    assert {"000.png", "010.png"} <= set(found)
    assert len(found) < 10
    assert (found["000.png"].given, found["000.png"].suggested) == ("bottom", "top")
    assert (found["010.png"].given, found["010.png"].suggested) == ("top", "middle")
    assert found["000.png"].why.startswith("top ")


def test_copy_under_another_label_is_found_beside_its_twin(spoiled):
    (row,) = named(spoiled[1], "duplicate").values()
    assert (row.file, row.given, row.suggested) == ("images_train/copy.png", "top", "bottom")
    assert row.why.endswith("of 256 bits as in images_train/020.png")


def test_image_unlike_all_others_is_found(spoiled):
    found = named(spoiled[1], "unlike")
    assert next(iter(found)) == "chess.png"
    assert found["chess.png"].rank == 1
    assert found["chess.png"].suggested == ""


def test_rows_are_places_in_the_pixels_and_ranks_begin_anew_with_each_kind(spoiled):
    run, table = spoiled
    rows = fomo.preprocess(run).images.set_index("file")["row"]
    assert table["row"].tolist() == rows[table["file"]].tolist()
    assert all(part["rank"].tolist() == [*range(1, len(part) + 1)] for _, part in table.groupby("kind"))


def test_suspects_are_read_from_the_store(spoiled, monkeypatch):
    run, table = spoiled
    monkeypatch.setattr("fomo.stages.suspecting.look_over", None)
    pd.testing.assert_frame_equal(fomo.suspects(run), table)


def test_where_nothing_is_suspect_the_table_is_empty(anew, monkeypatch):
    monkeypatch.setattr("fomo.stages.suspecting.confident_learning", lambda *_: ([], []))
    monkeypatch.setattr("fomo.stages.suspecting.FAR", 1e9)
    assert fomo.suspects(anew).empty


def test_of_many_images_some_are_looked_at(anew, monkeypatch):
    seen = []
    monkeypatch.setattr("fomo.stages.forecast.LOOKED_AT", 30)
    monkeypatch.setattr("fomo.stages.suspecting.look_over", lambda run, data, images: seen.append(images) or table)
    table = fomo.preprocess(anew).images.assign(suggested="")
    fomo.suspects(anew)
    assert len(seen[0]) == 30


def test_networks_have_their_say_on_the_images_that_are_new_to_them(finished):
    """Two networks: each tells of the validation images of its own division."""
    told = np.load(finished.run.folder / "11_final" / "told.npy")
    rows = [member.data.part("validation")[1] for member in fomo.train_members(finished.run)]
    assert told[:, 0].tolist() == np.concatenate(rows).tolist()
    assert told[:, 1:].sum(axis=1) == pytest.approx(np.ones(len(told)))


def test_suspects_are_not_looked_for_where_no_time_is_left(anew, monkeypatch):
    monkeypatch.setattr("fomo.stages.suspecting.in_time", lambda run, step: False)
    assert fomo.suspects(anew).empty
    assert anew.finished("13_suspects")


def test_suspects_are_the_same_when_they_are_looked_for_anew(anew, finished):
    pd.testing.assert_frame_equal(fomo.suspects(anew), fomo.suspects(finished.run))


def test_step_is_in_time_where_it_and_what_comes_after_it_fit(dataset, monkeypatch):
    run = fomo.Run(dataset, minutes=1)
    monkeypatch.setattr(planning, "planned_seconds", lambda run: {"suspects": 10.0, "pages": 20.0, "evaluate": 99.0})
    run.clock.add(25.0)
    assert planning.in_time(run, "suspects")
    run.clock.add(10.0)
    assert not planning.in_time(run, "suspects")
    assert planning.in_time(fomo.Run(dataset, "quick"), "suspects")
