import numpy as np
import pandas as pd
import pytest
import torch
import toys
from sklearn.metrics import log_loss

from fomo.data.batches import FeatureBatches, ImageBatches, loader
from fomo.networks.backbones import load_backbone
from fomo.networks.bank import HeadBank
from fomo.networks.classifier import Classifier
from fomo.networks.heads import HEADS, LINEAR
from fomo.networks.inference import predict
from fomo.training import loop
from fomo.training.loop import DivergedError, cosine, cross_entropy, evaluate, fit, make_optimizer, mix

CPU = torch.device("cpu")
RECIPE = {"schedule": "cosine", "label_smoothing": 0.1, "mixup": 0.5, "averaging": 0.9}
OPTIMIZERS = ("adam", "sgd", "rmsprop")
PIXELS = np.stack([toys.draw(number % 3, (32, 32, 1), seed=number).transpose(2, 0, 1) for number in range(24)])
LABELS = np.arange(24) % 3
FEATURES = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
CLASSES = (FEATURES[:, 0] > 0).astype(int) + (FEATURES[:, 1] > 0)


def image_loaders(train_batches=99, validation_batches=99):
    """Augmented train batches and plain validation batches; each breaks off after so many of them."""
    generator, norm = torch.Generator(), ((0.5,) * 3, (0.5,) * 3)
    train = ImageBatches(PIXELS, range(24), LABELS, *norm, rotation=30.0, generator=generator)
    validation = ImageBatches(PIXELS, range(12), LABELS[:12], *norm)
    train, validation = toys.Interrupted(train, train_batches), toys.Interrupted(validation, validation_batches)
    return loader(train, 8, generator), loader(validation, 8)


def feature_loaders(validation_labels=CLASSES[:20]):
    train = FeatureBatches(FEATURES[20:], CLASSES[20:])
    return loader(train, 5, torch.Generator()), loader(FeatureBatches(FEATURES[:20], validation_labels), 7)


def new_classifier():
    torch.manual_seed(0)
    backbone = load_backbone("test_efficientnet", "random", 32)
    return Classifier(backbone, LINEAR.build(backbone.num_features, 3))


def train_classifier(optimizer, checkpoint, *interruption, **recipe):
    model = new_classifier()
    optimizer = make_optimizer(model, optimizer, lr=1e-2, weight_decay=1e-3, momentum=0.9)
    recipe |= {"seed": 5, "device": CPU, "checkpoint": checkpoint}
    history = fit(model, optimizer, *image_loaders(*interruption), 3, **recipe)
    return model.state_dict(), history


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_leaves_out_what_is_fixed(optimizer):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = make_optimizer(model, optimizer, 0.1, 0.2, 0.3).param_groups
    assert [tuple(weight.shape) for group in groups for weight in group["params"]] == [(2, 3), (2,)]
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (0.1, 0.2)


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.3), ("adam", 0), ("rmsprop", 0)])
def test_momentum_acts_in_sgd_only(optimizer, momentum):
    group = make_optimizer(torch.nn.Linear(2, 3), optimizer, 0.1, 0.0, 0.3).param_groups[0]
    assert group.get("momentum", 0) == momentum


def test_cross_entropy_gives_each_model_its_own_loss():
    logits, labels = torch.randn(4, 6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    alone = torch.stack([torch.nn.functional.cross_entropy(one, labels) for one in logits])
    torch.testing.assert_close(cross_entropy(logits, labels), alone)
    torch.testing.assert_close(cross_entropy(logits[0], labels), alone[0])


def test_evaluate_is_the_mean_over_images_whatever_the_batches():
    model = torch.nn.Linear(6, 3)
    batches = loader(FeatureBatches(FEATURES, CLASSES), 7)  # the last batch is smaller
    loss, accuracy = evaluate(model, batches, CPU)
    probabilities = predict(model, batches, CPU)[0].double().softmax(1)
    assert loss == pytest.approx(log_loss(CLASSES, probabilities.numpy()), rel=1e-6)
    assert accuracy == (probabilities.argmax(1).numpy() == CLASSES).mean()


def test_training_learns():
    model = LINEAR.build(6, 3)
    history = fit(model, make_optimizer(model, "adam", 0.05, 0.0), *feature_loaders(), 10, seed=0, device=CPU)
    assert history["validation_loss"].iloc[-1] < 0.6 * history["validation_loss"].iloc[0]
    assert history["epoch"].tolist() == list(range(1, 11))


def test_epoch_of_lowest_validation_loss_is_kept():
    model = LINEAR.build(6, 3)
    loaders = feature_loaders(2 - CLASSES[:20])  # the better the model, the worse it is on these labels
    history = fit(model, make_optimizer(model, "adam", 0.05, 0.0), *loaders, 5, seed=0, device=CPU)
    assert history["validation_loss"].idxmin() < 4
    assert evaluate(model, loaders[1], CPU)[0] == history["validation_loss"].min()


@pytest.mark.parametrize(
    ("optimizer", "interruption", "left"),
    [
        ("adam", (7, 99), 3),  # two epochs of three batches, and one batch of the last
        ("sgd", (99, 3), 6),  # in the validation of the second epoch
        ("rmsprop", (0, 99), 9),
    ],
    ids=["in training", "in validation", "at once"],
)
@pytest.mark.parametrize("recipe", [{}, RECIPE], ids=["plain", "recipe"])
def test_interrupted_training_goes_on_to_the_same_weights_and_repeats_no_epoch(
    tmp_path, optimizer, interruption, left, recipe
):
    weights, history = train_classifier(optimizer, tmp_path / "whole.pt", **recipe)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(optimizer, tmp_path / "checkpoint.pt", *interruption, **recipe)
    resumed_weights, resumed_history = train_classifier(optimizer, tmp_path / "checkpoint.pt", left, **recipe)
    pd.testing.assert_frame_equal(history, resumed_history, check_exact=True)
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)


def test_finished_training_is_not_trained_again(tmp_path):
    _, history = train_classifier("adam", tmp_path / "checkpoint.pt")
    pd.testing.assert_frame_equal(train_classifier("adam", tmp_path / "checkpoint.pt", 0)[1], history)


class OnGpu:
    """A tensor as a GPU holds it: its numbers are not to be had before it is brought to the processor."""

    def __init__(self, tensor):
        self.tensor = tensor

    def cpu(self):
        return self.tensor


def test_training_interrupted_on_a_gpu_goes_on(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        train_classifier("adam", tmp_path / "checkpoint.pt", 7)
    read = loop.load_state

    def to_gpu(path, device):
        stored = read(path, device)
        return stored | {"best": OnGpu(stored["best"])}

    monkeypatch.setattr(loop, "load_state", to_gpu)
    train_classifier("adam", tmp_path / "checkpoint.pt", 3)


def test_training_reports_the_losses_of_its_first_quarters_and_of_each_epoch_but_the_last():
    model, told, losses = LINEAR.build(6, 3), [], []
    optimizer = make_optimizer(model, "sgd", 0.1, 0.0)
    train, validation = feature_loaders()  # an epoch of four batches

    def forward(module, inputs, logits):
        if module.training:
            losses.append(logits.detach())

    model.register_forward_hook(forward)
    train.generator.manual_seed(1)  # as the first epoch with seed 0 does
    labels = [batch for _, batch in train]
    history = fit(model, optimizer, train, validation, 3, seed=0, device=CPU, report=lambda *one: told.append(one))
    assert [at for at, _ in told] == [0.25, 0.5, 0.75, 1, 2]
    expected = [float(cross_entropy(one, batch)) for one, batch in zip(losses[:3], labels[:3], strict=True)]
    assert [loss for _, loss in told[:3]] == pytest.approx(expected)
    assert [loss for _, loss in told[3:]] == pytest.approx(history["validation_loss"][:2].tolist())


def test_cosine_rises_for_a_tenth_of_the_steps_and_falls_to_zero():
    factors = [cosine(step / 50) for step in range(51)]
    assert factors[:5] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    reference = torch.optim.lr_scheduler.CosineAnnealingLR
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler, falling = reference(optimizer, 45), []
    for _ in range(46):
        falling.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert factors[5:] == pytest.approx(falling, abs=1e-9)
    assert all(0 <= cosine(step / 1000) <= 1 for step in range(1001))


def test_schedule_sets_the_rate_of_every_step_to_that_of_its_middle():
    model, rates = LINEAR.build(6, 3), []
    optimizer = make_optimizer(model, "sgd", 0.5, 0.0)
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    fit(model, optimizer, *feature_loaders(), 5, seed=0, device=CPU, schedule="cosine")
    assert rates == pytest.approx([0.5 * cosine((step + 0.5) / 20) for step in range(20)])


def test_smoothing_spreads_a_share_of_the_label_over_all_classes():
    logits, labels = torch.randn(2, 6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    scores = logits.log_softmax(-1)
    target = 0.7 * torch.nn.functional.one_hot(labels, 3) + 0.3 / 3
    torch.testing.assert_close(cross_entropy(logits, labels, 0.3), -(target * scores).sum(-1).mean(-1))


def test_mixup_mixes_inputs_and_losses_by_the_same_share():
    torch.manual_seed(0)
    inputs, labels, shares = torch.eye(4), torch.arange(4), []
    for _ in range(200):
        mixed, ((first, own), (second, other)) = mix(inputs, labels, 0.2)
        target = first * torch.nn.functional.one_hot(own, 4) + second * torch.nn.functional.one_hot(other, 4)
        torch.testing.assert_close(mixed, target)  # an input is its own label here
        shares.append(first)
    assert 0.4 < np.mean(shares) < 0.6
    assert np.mean((np.array(shares) > 0.1) & (np.array(shares) < 0.9)) < 0.5  # Beta(0.2, 0.2) is mostly at its ends


@pytest.mark.parametrize("recipe", [{"label_smoothing": 0.9}, {"mixup": 5.0}])
def test_smoothing_and_mixup_act_in_training_only(recipe):
    model = LINEAR.build(6, 3)
    loaders = feature_loaders()
    options = {"seed": 0, "device": CPU} | recipe
    history = fit(model, make_optimizer(model, "adam", 0.05, 0.0), *loaders, 1, **options)
    logits, labels = predict(model, loaders[1], CPU)
    assert history["validation_loss"][0] == pytest.approx(float(cross_entropy(logits.double(), labels)))
    plain = LINEAR.build(6, 3)
    plain.load_state_dict(model.state_dict())
    assert evaluate(plain, loaders[1], CPU)[0] == history["validation_loss"][0]


@pytest.mark.parametrize(("keep", "epoch"), [("loss", 1), ("accuracy", 2), ("last", 3)])
def test_epoch_kept_is_the_best_by_loss_or_by_accuracy_or_the_last(monkeypatch, keep, epoch):
    """Made up: the first epoch has the lowest loss, the second the highest accuracy; the last is no better."""
    seen, told = [], iter([(0.1, 0.5), (0.3, 0.9), (0.1, 0.9)])

    def evaluated(model, batches, device):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return tuple(map(np.array, next(told)))

    monkeypatch.setattr(loop, "evaluate", evaluated)
    model = LINEAR.build(6, 3)
    optimizer = make_optimizer(model, "adam", 1e-2, 0.0)
    fit(model, optimizer, *feature_loaders(), 3, seed=0, device=CPU, keep=keep)
    assert all(torch.equal(value, seen[epoch - 1][name]) for name, value in model.state_dict().items())


def test_moving_average_of_the_weights_is_kept():
    model, seen = LINEAR.build(6, 3), []
    optimizer = make_optimizer(model, "sgd", 0.5, 0.0)
    optimizer.register_step_post_hook(lambda *_: seen.append(model[-1].weight.detach().clone()))
    fit(model, optimizer, *feature_loaders(), 1, seed=0, device=CPU, averaging=0.2)
    average = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        decay = min(0.2, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(model[-1].weight.detach(), average)
    assert not torch.allclose(average, seen[-1])


def test_another_seed_takes_another_path():
    def first_loss(seed):
        torch.manual_seed(0)
        model = LINEAR.build(6, 3)
        optimizer = make_optimizer(model, "adam", 0.05, 0.0)
        return fit(model, optimizer, *feature_loaders(), 1, seed=seed, device=CPU)["train_loss"][0]

    assert first_loss(0) == first_loss(0) != first_loss(1)


def test_loss_that_is_not_finite_raises():
    model = LINEAR.build(6, 3)
    optimizer = make_optimizer(model, "sgd", 1e38, 0.0, 0.9)
    with pytest.raises(DivergedError, match="not finite in epoch"):
        fit(model, optimizer, *feature_loaders(), 5, seed=0, device=CPU)


def test_heads_of_a_bank_have_the_learning_curves_of_heads_trained_alone():
    torch.manual_seed(3)
    bank = HeadBank(HEADS, 6, 3)
    curves = fit(bank, make_optimizer(bank, "adam", 1e-3, 0.0), *feature_loaders(), 3, seed=2, device=CPU)
    torch.manual_seed(3)
    heads = [head.build(6, 3) for head in HEADS]
    for number in (0, 13, 26, 35, 36):
        optimizer = make_optimizer(heads[number], "adam", 1e-3, 0.0)
        alone = fit(heads[number], optimizer, *feature_loaders(), 3, seed=2, device=CPU)
        together = curves[curves["model"] == number].reset_index(drop=True).assign(model=0)
        pd.testing.assert_frame_equal(together, alone, check_exact=False, atol=1e-4, rtol=0)


def in_a_hurry(after, steps):
    """A `pace` that, once `after` steps are done, leaves `steps` in all."""
    return lambda done, total: min(total, steps) if done >= after else total


def paced_training(pace, epochs=5):
    """The learning rate of each step, and the history, of a training whose epochs have four batches."""
    model, rates = LINEAR.build(6, 3), []
    optimizer = make_optimizer(model, "sgd", 0.5, 0.0)
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    options = {"seed": 0, "device": CPU, "schedule": "cosine", "pace": pace}
    return rates, fit(model, optimizer, *feature_loaders(), epochs, **options)


def test_pace_takes_steps_away_and_the_last_epoch_is_a_part_of_one():
    rates, history = paced_training(in_a_hurry(after=5, steps=10))
    assert len(rates) == 10
    assert history["epoch"].tolist() == [1, 2, 3]


def test_pace_is_asked_before_each_step():
    asked = []
    paced_training(lambda done, total: asked.append((done, total)) or total, epochs=2)
    assert asked == [(done, 8) for done in range(8)]


def test_rate_still_ends_near_zero_where_steps_are_taken_away():
    whole, _ = paced_training(None)
    rates, _ = paced_training(in_a_hurry(after=8, steps=12))
    assert rates[:8] == whole[:8]
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] < 0.05 * 0.5  # a step before it was to be 0


def test_pace_that_changes_nothing_leaves_the_schedule_as_it_was():
    assert paced_training(lambda done, total: total)[0] == paced_training(None)[0]


@pytest.mark.parametrize("interruption", [(4, 99), (99, 3)], ids=["in training", "in validation"])
def test_interrupted_training_with_a_pace_goes_on_to_the_same_weights(tmp_path, interruption):
    recipe = RECIPE | {"pace": in_a_hurry(after=2, steps=7)}  # two epochs of three batches, and a third of one
    weights, history = train_classifier("adam", tmp_path / "whole.pt", **recipe)
    with pytest.raises(KeyboardInterrupt):
        train_classifier("adam", tmp_path / "checkpoint.pt", *interruption, **recipe)
    resumed_weights, resumed_history = train_classifier("adam", tmp_path / "checkpoint.pt", **recipe)
    assert history["epoch"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(history, resumed_history, check_exact=True)
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
