from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from torch.nn.functional import cross_entropy

from fomo.data.batches import FeatureBatches, loader
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR
from fomo.storage import load_state, save_state
from fomo.training.darts import MixedOperation, perturbation, search

CPU = torch.device("cpu")
RATES = {"weight_lr": 1e-3, "alpha_lr": 1e-2}


@dataclass
class Batches:
    """Train and validation batches of toy features; each breaks off after so many of them."""

    train: int = 99
    validation: int = 99
    size: int = 20

    def loaders(self):
        features = torch.randn(120, 8, generator=torch.Generator().manual_seed(0)).numpy()
        labels = (features[:, 0] > 0).astype(int) + (features[:, 1] > 0)
        train = toys.Interrupted(FeatureBatches(features[:80], labels[:80]), self.train)
        validation = toys.Interrupted(FeatureBatches(features[80:], labels[80:]), self.validation)
        return [loader(batches, self.size, torch.Generator()) for batches in (train, validation)]


@pytest.fixture
def supernet():
    """A supernet in float64 whose alphas differ."""
    supernet = MixedOperation(HeadBank(HEADS, 8, 3)).double()
    supernet.alpha.data = torch.randn(37, dtype=torch.float64)
    return supernet


@pytest.fixture
def batch():
    return torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])


def searched(checkpoint, batches=None, epochs=3, **options):
    torch.manual_seed(0)
    supernet = MixedOperation(HeadBank(HEADS, 8, 3))
    options = RATES | options | {"seed": 4, "device": CPU, "checkpoint": checkpoint}
    return supernet, search(supernet, *(batches or Batches()).loaders(), epochs, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A supernet and its history after three epochs; for reading only."""
    return searched(tmp_path_factory.mktemp("whole") / "supernet.pt")


def weights(supernet):
    return [weight.detach().clone() for weight in supernet.bank.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def constant(logits):
    """A linear head that gives these logits, whatever its input."""
    module = LINEAR.build(8, len(logits))
    module[0].weight.data.zero_()
    module[0].bias.data = torch.tensor(logits)
    return module


def mixture(modules):
    """A supernet of linear heads."""
    classes = modules[0][0].out_features
    return MixedOperation(HeadBank([LINEAR] * len(modules), 8, classes, modules=modules))


def validation(count=50):
    """Batches of toy features, of which the first three are the logits of their class."""
    features = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    labels = features[:, :3].argmax(1).numpy()
    return loader(FeatureBatches(features.numpy(), labels), 20)


# ---- the mixed operation


def test_supernet_is_the_softmax_weighted_sum_of_the_37_operations(batch):
    torch.manual_seed(1)
    heads = [head.build(8, 3).double() for head in HEADS]
    torch.manual_seed(1)
    supernet = MixedOperation(HeadBank(HEADS, 8, 3)).double()
    supernet.alpha.data = torch.randn(37, dtype=torch.float64)
    shares = supernet.alpha.exp() / supernet.alpha.exp().sum()
    expected = sum(share * head(batch[0]) for share, head in zip(shares, heads, strict=True))
    torch.testing.assert_close(supernet(batch[0]), expected)


def test_alpha_gradient_is_that_of_central_finite_differences(supernet, batch):
    features, labels = batch
    cross_entropy(supernet(features), labels).backward()
    differences = torch.zeros(37, dtype=torch.float64)
    with torch.no_grad():
        for operation in range(37):
            losses = []
            for step in (1e-5, -2e-5):
                supernet.alpha[operation] += step
                losses.append(cross_entropy(supernet(features), labels))
            supernet.alpha[operation] += 1e-5
            differences[operation] = (losses[0] - losses[1]) / 2e-5
    torch.testing.assert_close(supernet.alpha.grad, differences, atol=1e-9, rtol=1e-5)


def test_alpha_gradient_is_the_known_one_of_two_opposite_heads():
    """logits +-(a, -a)/2 mixed half and half, class 0: dL/dalpha = -a/4 and a/4."""
    supernet = mixture([constant([2.0, 0.0]), constant([0.0, 2.0])])
    cross_entropy(supernet(torch.randn(5, 8)), torch.zeros(5, dtype=torch.int64)).backward()
    torch.testing.assert_close(supernet.alpha.grad, torch.tensor([-0.5, 0.5]))


def test_alphas_start_at_zero():
    assert MixedOperation(HeadBank(HEADS, 8, 3)).alpha.tolist() == [0.0] * 37


# ---- the search


def test_alpha_step_leaves_the_weights_untouched(tmp_path):
    torch.manual_seed(0)
    initial = weights(MixedOperation(HeadBank(HEADS, 8, 3)))
    supernet, history = searched(tmp_path / "supernet.pt", epochs=1, weight_lr=0.0)
    assert same(weights(supernet), initial)
    assert (history.filter(like="alpha_").iloc[-1] != 0).all()


def test_weight_step_leaves_the_alphas_untouched(tmp_path):
    torch.manual_seed(0)
    initial = weights(MixedOperation(HeadBank(HEADS, 8, 3)))
    supernet, history = searched(tmp_path / "supernet.pt", epochs=1, alpha_lr=0.0)
    assert not same(weights(supernet), initial)
    assert (history.filter(like="alpha_") == 0).all(axis=None)


def test_a_step_of_alpha_follows_validation_and_then_a_step_of_the_weights_follows_train(tmp_path):
    supernet, _ = searched(tmp_path / "supernet.pt", Batches(size=80), epochs=1)
    torch.manual_seed(0)
    expected = MixedOperation(HeadBank(HEADS, 8, 3))
    alpha_optimizer = torch.optim.Adam([expected.alpha], RATES["alpha_lr"])
    weight_optimizer = torch.optim.Adam(expected.bank.parameters(), RATES["weight_lr"])
    train, validation = (next(iter(batches)) for batches in Batches(size=80).loaders())  # all images in one batch
    for optimizer, (features, labels) in ((alpha_optimizer, validation), (weight_optimizer, train)):
        optimizer.zero_grad()
        cross_entropy(expected(features), labels).backward()
        optimizer.step()
    torch.testing.assert_close(supernet.alpha, expected.alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(supernet(train[0]), expected(train[0]), atol=1e-4, rtol=0)


def test_history_holds_the_alphas_of_every_epoch(whole):
    supernet, history = whole
    alphas = history[[f"alpha_{operation}" for operation in range(37)]]
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert (alphas.iloc[0] == 0).all()
    assert alphas.iloc[-1].tolist() == supernet.alpha.tolist()
    assert alphas.diff()[1:].abs().gt(0).all(axis=None)


def test_search_lowers_the_validation_loss(tmp_path):
    _, history = searched(tmp_path / "supernet.pt", epochs=5)
    assert history["validation_loss"].iloc[-1] < 0.9 * history["validation_loss"].iloc[0]


@pytest.mark.parametrize("batches", [Batches(train=0), Batches(train=6), Batches(validation=9)])
def test_interrupted_search_goes_on_to_the_same_alphas(whole, tmp_path, batches):
    supernet, history = whole
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "supernet.pt", Batches(**vars(batches)))
    resumed, resumed_history = searched(tmp_path / "supernet.pt")
    pd.testing.assert_frame_equal(resumed_history, history, check_exact=True)
    assert same(resumed.parameters(), supernet.parameters())


def test_seconds_of_a_search_grow_when_it_is_resumed(tmp_path):
    _, history = searched(tmp_path / "supernet.pt", epochs=1)
    state = load_state(tmp_path / "supernet.pt", CPU)
    assert 0 < state["seconds"] <= history.attrs["seconds"]
    save_state(tmp_path / "supernet.pt", state | {"seconds": 1000.0})
    _, resumed = searched(tmp_path / "supernet.pt", epochs=2)
    assert 1000 < load_state(tmp_path / "supernet.pt", CPU)["seconds"] <= resumed.attrs["seconds"]


def test_finished_search_is_not_repeated(tmp_path):
    _, history = searched(tmp_path / "supernet.pt")
    _, again = searched(tmp_path / "supernet.pt", Batches(train=0))
    pd.testing.assert_frame_equal(again, history)


# ---- the perturbation


def test_operation_without_a_share_is_not_missed():
    supernet = MixedOperation(HeadBank(HEADS, 8, 3))
    supernet.alpha.data[4] = -1000.0
    rises = perturbation(supernet, validation(), CPU)
    assert rises[4] == pytest.approx(0, abs=1e-6)
    assert np.abs(rises).max() > 1e-4


def test_none_of_identical_operations_is_missed():
    supernet = mixture([LINEAR.build(8, 3)] * 3)
    supernet.alpha.data = torch.tensor([0.0, 1.0, -1.0])
    assert np.allclose(perturbation(supernet, validation(), CPU), 0, atol=1e-6)


def test_the_one_useful_operation_is_missed_most():
    useful = constant([0.0] * 3)
    useful[0].weight.data = 5 * torch.eye(3, 8)
    supernet = mixture([constant([0.0] * 3), useful, constant([0.1, 0.0, 0.0])])
    supernet.alpha.data = torch.tensor([0.5, 0.0, 0.5])  # alpha does not know
    rises = perturbation(supernet, validation(), CPU)
    assert rises.argmax() == 1
    assert rises[1] > 0.3
    assert rises[[0, 2]].max() < 0.1


def test_perturbation_is_the_loss_of_a_supernet_without_the_operation():
    modules, batches = [LINEAR.build(8, 3) for _ in range(4)], validation()
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    alpha = torch.tensor([0.4, 0.0, -0.3, 0.2])

    def loss(places):
        supernet = mixture([modules[place] for place in places])
        supernet.alpha.data = alpha[places]
        return cross_entropy(supernet(features), labels).item()

    supernet = mixture(modules)
    supernet.alpha.data = alpha
    expected = [loss([p for p in range(4) if p != left]) - loss([0, 1, 2, 3]) for left in range(4)]
    assert perturbation(supernet, batches, CPU) == pytest.approx(expected, abs=1e-5)


def test_perturbation_is_finite_where_one_operation_has_it_all():
    supernet = mixture([LINEAR.build(8, 3) for _ in range(3)])
    supernet.alpha.data = torch.tensor([0.0, 200.0, 0.0])
    rises = perturbation(supernet, validation(), CPU)
    assert np.isfinite(rises).all()
    assert rises[[0, 2]] == pytest.approx(0, abs=1e-6)
    assert abs(rises[1]) > 1e-3
