import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image

import fomo
from fomo import finetuning, views
from fomo.backbones import Backbone, load_backbone
from fomo.classifier import Classifier
from fomo.config import UserError
from fomo.data import ImageBatches, ViewBatches, loader
from fomo.finetuning import FINETUNING_FIRST, finetuning_trial, store_trial_views
from fomo.heads import LINEAR
from fomo.views import Moving, read_views, store_views

CPU = torch.device("cpu")
LAYERS = (2, 3, 4)
NETWORKS = ("test_efficientnet", "test_resnet", "test_convnext", "test_vit", "resnet34", "tf_efficientnet_lite0")
CHEAP = {"trial_share": 0.5, "trial_views": 2, "train_scale": 0.75}
STORE = 2 * 6 + 3  # batches that its writing takes: two views of 24 train images and 12 for validation, 4 at a time


def classifier(name, layer=1):
    backbone = load_backbone(name, "random", 32)
    backbone.fix_until(layer)
    return Classifier(backbone, LINEAR.build(backbone.num_features, 3))


def gradients(model, inputs):
    """Of the weights that are trained, by one step's loss in training mode."""
    model.train().zero_grad()
    torch.manual_seed(0)  # dropout
    torch.nn.functional.cross_entropy(model(inputs), torch.arange(len(inputs)) % 3).backward()
    trained = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    return {name.removeprefix("classifier."): gradient.clone() for name, gradient in trained.items()}


def image_batches(count=6, side=32, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return ImageBatches(pixels, range(count), np.arange(count) % 3, [0.5] * 3, [0.5] * 3, **options)


def study_folder(run):
    return run.folder / "3_bayesian_optimization"


def stored(run):
    return sorted(path.name for path in study_folder(run).glob("views_*"))


@pytest.fixture
def batches(monkeypatch):
    """Counts the batches of images that are drawn; at the number `batches["stop"]`, as if someone pressed Ctrl-C."""
    drawn, get = {"count": 0, "stop": None}, ImageBatches.__getitem__

    def counted(self, numbers):
        if drawn["count"] == drawn["stop"]:
            raise KeyboardInterrupt
        drawn["count"] += 1
        return get(self, numbers)

    monkeypatch.setattr(ImageBatches, "__getitem__", counted)
    return drawn


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    """The trials of a toy study on stored views, without their seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOMO_RUNS", str(tmp_path_factory.mktemp("uninterrupted")))
        return fomo.optimize_finetuning(toys.tiny_run(dataset, **CHEAP)).trials.drop(columns="seconds")


def assert_same_trials(run, expected):
    table = fomo.optimize_finetuning(run).trials.drop(columns="seconds")
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert {path.name for path in study_folder(run).iterdir()} == {"stage.json", "trials.csv"}


# ---- a network cut at its stages


@pytest.mark.parametrize("name", [*NETWORKS, "convnext_tiny"])
def test_features_are_the_same_from_the_middle_on(name):
    backbone, images = load_backbone(name, "random", 32).eval(), torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        features, reached = backbone(images), backbone.reaching(images, LAYERS)
        for layer in LAYERS:
            backbone.fix_until(layer)
            torch.testing.assert_close(backbone.resume(reached[layer]), features, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(backbone.resume(reached[layer].flip(0)), features, rtol=1e-3)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NETWORKS[:4])
def test_gradients_are_the_same_from_the_middle_on(name, layer):
    model, images = classifier(name, layer), torch.rand(6, 3, 32, 32)
    expected = gradients(model, images)
    reached = model.backbone.reaching(images, [layer])[layer]
    assert not reached.requires_grad
    found = gradients(Moving(model), reached)
    assert found.keys() == expected.keys()
    for weight, gradient in found.items():
        torch.testing.assert_close(gradient, expected[weight], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_by_stored_views_are_those_by_the_images_up_to_rounding(tmp_path, layer):
    model, plain = classifier("test_efficientnet", layer), image_batches()
    expected = gradients(model, plain[[*range(6)]][0])
    store_views(model.backbone, {"train": (loader(plain, 4), 1)}, LAYERS, tmp_path, CPU)
    found = gradients(Moving(model), ViewBatches(read_views(tmp_path, "train", layer), [0] * 6)[[*range(6)]][0])
    difference = torch.cat([(found[weight] - expected[weight]).flatten() for weight in expected]).norm()
    assert 0 < difference < 1e-2 * torch.cat([gradient.flatten() for gradient in expected.values()]).norm()


def test_fixed_stages_are_in_eval_mode_in_the_store(tmp_path):
    backbone, plain = classifier("test_efficientnet").backbone, image_batches()
    store_views(backbone.train(), {"train": (loader(plain, 4), 1)}, [3], tmp_path, CPU)
    with torch.no_grad():
        expected = backbone.eval().reaching(plain[[*range(6)]][0], [3])[3]
    np.testing.assert_allclose(read_views(tmp_path, "train", 3)[:, 0], expected, rtol=2e-3, atol=1e-4)


# ---- what a trial comes to


@pytest.fixture
def mirrored(tmp_path):
    """A data set of 32 pixels whose images are their own mirror images: without rotation, all views are the same."""
    folder = toys.write_dataset(tmp_path / "mirrored", shape=(32, 32, 3))
    for path in folder.glob("images_*/*.png"):
        pixels = np.array(Image.open(path))
        pixels[:, 16:] = pixels[:, 15::-1]
        Image.fromarray(pixels).save(path)
    toys.write_csv(folder, "train", [f"{n:03}.png" for n in range(60)], [n % 3 if n % 2 else 0 for n in range(60)])
    return folder


@pytest.mark.parametrize("layer", LAYERS)
def test_trial_on_views_comes_to_what_it_comes_to_on_the_images(mirrored, batches, layer):
    settings = {"rotation": 0.0, "crop": 1.0, "trial_epochs": 2, "balance": "sampler", "trial_share": 0.9}
    settings |= {"averaging": 0.9, "schedule": "cosine", "label_smoothing": 0.1, "batch_size": 10}
    configuration = FINETUNING_FIRST | {"layer": layer, "lr": 3e-3, "momentum": 0.0}  # larger steps enlarge roundings
    rows, reports = [], [[], []]
    for count, told in zip((0, 3), reports, strict=True):
        run = toys.tiny_run(mirrored, **settings, trial_views=count, name=f"{count}")
        if count:
            store_trial_views(run)
        before = batches["count"]
        rows.append(finetuning_trial(run, configuration, lambda *at, told=told: told.append(at)))
        assert (batches["count"] == before) == (count > 0)  # views are stored, so no image is looked at
    assert rows[1] == pytest.approx(rows[0], rel=1e-3)
    assert rows[1] != rows[0]
    assert [at for at, _ in reports[1]] == [at for at, _ in reports[0]] == [0.25, 0.5, 0.75, 1]
    assert [loss for _, loss in reports[1]] == pytest.approx([loss for _, loss in reports[0]], rel=1e-3)


def test_views_are_augmented_as_the_run_says_and_what_judges_is_not(dataset, tmp_path):
    run = toys.tiny_run(dataset, **CHEAP, rotation=90.0, zoom=0.5, trial_size=24)
    train, validation = (read_views(store_trial_views(run), part, 2) for part in ("train", "validation"))
    assert train.shape == (24, 2, 24, 5, 5)  # 18 pixels, of which the first stage keeps each fourth
    assert validation.shape == (12, 1, 24, 6, 6)
    assert train.dtype == validation.dtype == np.float16
    spread = np.abs(train[:, 0].astype(float) - train[:, 1]).mean(axis=(1, 2, 3))
    assert (spread > 0.1 * np.abs(train.astype(float)).mean()).all()
    backbone = finetuning.untrained(run, fomo.preprocess(run)).backbone.eval()
    part = finetuning.trial_samples(run, fomo.preprocess(run))[1]
    images, _ = ImageBatches(*part, backbone.mean, backbone.std, side=24)[[*range(12)]]
    with torch.no_grad():
        expected = backbone.reaching(images, [2])[2]
    np.testing.assert_allclose(validation[:, 0], expected, rtol=2e-3, atol=1e-4)


def test_each_view_is_shown_equally_often_and_the_same_by_the_same_seed():
    values = np.arange(400).reshape(100, 4, 1).astype(np.float16)
    batches = ViewBatches(values, np.arange(100), torch.Generator())
    passes = []
    for seed in (*range(50), 7):
        batches.generator.manual_seed(seed)
        shown, labels = batches[list(range(99, -1, -1))]
        assert torch.equal(shown.flatten() // 4, labels.float())
        assert shown.dtype == torch.float32
        passes.append(shown.flatten() % 4)
    assert torch.equal(passes[7], passes[-1])
    counts = torch.bincount(torch.cat(passes[:-1]).long(), minlength=4)
    assert counts.tolist() == pytest.approx([1250] * 4, rel=0.1)


def test_without_generator_the_first_view_is_shown():
    values = np.arange(12).reshape(3, 4).astype(np.float16)
    assert ViewBatches(values, [0, 1, 2])[[2, 0]][0].tolist() == [8, 0]


# ---- the study


def test_trials_on_worker_processes_read_what_this_one_stored(dataset, uninterrupted, processes, monkeypatch):
    run, seen, remove = toys.tiny_run(dataset, **CHEAP), [], views.remove_views

    def state(folder):
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.glob("views_*")}

    def watched_store(backbone, parts, layers, folder, device):
        store_views(backbone, parts, layers, folder, device)
        seen.append(state(folder))

    def watched_remove(folder):
        seen.append(state(folder))
        remove(folder)

    monkeypatch.setattr(finetuning, "store_views", watched_store)
    monkeypatch.setattr(finetuning, "remove_views", watched_remove)
    table = fomo.optimize_finetuning(run, processes, workers=1).trials.drop(columns="seconds")
    pd.testing.assert_frame_equal(table, uninterrupted, check_exact=True)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2 * len(LAYERS)


@pytest.mark.parametrize("stop", [0, 3, STORE])
def test_study_killed_while_views_are_stored_comes_to_the_same_end(dataset, uninterrupted, batches, stop):
    run = toys.tiny_run(dataset, **CHEAP)
    fomo.preprocess(run)
    batches["stop"] = stop
    with pytest.raises(KeyboardInterrupt):
        fomo.optimize_finetuning(run)
    assert stored(run) == []
    batches["stop"] = None
    assert_same_trials(run, uninterrupted)


def test_study_killed_while_views_get_their_names_comes_to_the_same_end(dataset, uninterrupted):
    run = toys.tiny_run(dataset, **CHEAP)
    folder = store_trial_views(run)
    assert len(stored(run)) == 2 * len(LAYERS)
    (folder / "views_train_3.npy").rename(folder / ".views_train_3.npy.1.tmp")
    (folder / "views_validation_2.npy").write_bytes(b"of another study")
    assert_same_trials(run, uninterrupted)


def test_study_killed_in_a_trial_goes_on_with_the_views_that_are_stored(dataset, uninterrupted, batches, monkeypatch):
    run = toys.tiny_run(dataset, **CHEAP)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "fit_batches", killed)
        with pytest.raises(KeyboardInterrupt):
            fomo.optimize_finetuning(run)
    assert batches["count"] == STORE + 2  # and a look at each part
    assert_same_trials(run, uninterrupted)
    assert batches["count"] == STORE + 2


# ---- what is refused


def test_views_beyond_the_budget_are_refused_before_any_is_computed(dataset, monkeypatch, tmp_path):
    folder = store_trial_views(toys.tiny_run(dataset, **CHEAP, name="allowed"))
    size = sum(np.load(path).nbytes for path in folder.glob("views_*"))
    monkeypatch.setattr(views, "_fill", lambda *_: pytest.fail("computed"))
    run = toys.tiny_run(dataset, **CHEAP)
    monkeypatch.setattr(views, "BUDGET", size - 1)
    with pytest.raises(UserError, match=rf"{size} bytes.*fewer trial_views .*smaller trial_share.*smaller trial_size"):
        fomo.optimize_finetuning(run)
    assert {path.name for path in study_folder(run).iterdir()} == {"stage.json"}


def shortcut(self, images):
    return self.network(images) + images.mean(dim=(1, 2, 3))[:, None]


def test_network_with_a_way_around_its_stages_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(Backbone, "forward", shortcut)
    run = toys.tiny_run(dataset, **CHEAP)
    with pytest.raises(UserError, match=r"'test_efficientnet' cannot be cut at its stages .* trial_views=0 trains"):
        fomo.optimize_finetuning(run)
    assert stored(run) == []


def test_network_whose_stages_are_not_blank_to_each_other_is_refused(tmp_path):
    backbone = load_backbone("xception41", "random", 32)
    with pytest.raises(UserError, match="'xception41' cannot be cut at its stages"):
        store_views(backbone, {"train": (loader(image_batches(), 4), 1)}, LAYERS, tmp_path, CPU)


def test_network_that_trains_before_the_cut_is_refused(tmp_path):
    backbone = load_backbone("test_efficientnet", "random", 32)
    backbone.stages[3].append(backbone.network.conv_stem)
    backbone.stages[0].remove(backbone.network.conv_stem)
    with pytest.raises(UserError, match="'test_efficientnet' cannot be cut at its stages"):
        store_views(backbone, {"train": (loader(image_batches(), 4), 1)}, LAYERS, tmp_path, CPU)


def test_numbers_too_large_to_store_are_refused(tmp_path):
    backbone = load_backbone("test_efficientnet", "random", 32)
    with torch.no_grad():
        backbone.network.conv_stem.weight.mul_(1e9)
    with pytest.raises(UserError, match=r"'test_efficientnet' computes numbers up to .* float16 .* trial_views=0"):
        store_views(backbone, {"train": (loader(image_batches(), 4), 1)}, LAYERS, tmp_path, CPU)
    assert list(tmp_path.iterdir()) == []
