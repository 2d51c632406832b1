from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from torch.nn.functional import cross_entropy

from fomo.bank import HeadBank
from fomo.darts import MixedOperation, best_epochs, judge, rank, search
from fomo.data import FeatureBatches, loader
from fomo.heads import HEADS

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


def searched(checkpoint, batches=None, epochs=3, **rates):
    torch.manual_seed(0)
    supernet = MixedOperation(HeadBank(HEADS, 8, 3))
    options = RATES | rates | {"seed": 4, "device": CPU, "checkpoint": checkpoint}
    return supernet, search(supernet, *(batches or Batches()).loaders(), epochs, **options)


def weights(supernet):
    return [weight.detach().clone() for weight in supernet.bank.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def hand_made_ranking(alphas, accuracies):
    """A ranking of 37 operations: those given, and the rest in the same order on either scale, below them."""
    rest = np.arange(37 - len(alphas))
    alone = pd.concat(
        pd.DataFrame({"operation": range(37), "seed": seed, "accuracy": [*accuracies, *rest / 1000]}) for seed in (0, 1)
    )
    history = pd.DataFrame([[0.0] * 37, [*alphas, *(rest / 1000 - 1)]], columns=[f"alpha_{n}" for n in range(37)])
    return rank(history, alone)


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


def test_alphas_start_at_zero():
    assert MixedOperation(HeadBank(HEADS, 8, 3)).alpha.tolist() == [0.0] * 37


# ---- the search


def test_alpha_step_leaves_the_weights_untouched(tmp_path):
    torch.manual_seed(0)
    initial = weights(MixedOperation(HeadBank(HEADS, 8, 3)))
    supernet, history = searched(tmp_path / "supernet.pt", weight_lr=0.0)
    assert same(weights(supernet), initial)
    assert (history.filter(like="alpha_").iloc[-1] != 0).all()


def test_weight_step_leaves_the_alphas_untouched(tmp_path):
    torch.manual_seed(0)
    initial = weights(MixedOperation(HeadBank(HEADS, 8, 3)))
    supernet, history = searched(tmp_path / "supernet.pt", alpha_lr=0.0)
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


def test_history_holds_the_alphas_of_every_epoch(tmp_path):
    supernet, history = searched(tmp_path / "supernet.pt")
    alphas = history[[f"alpha_{operation}" for operation in range(37)]]
    assert history["epoch"].tolist() == [0, 1, 2, 3]
    assert (alphas.iloc[0] == 0).all()
    assert alphas.iloc[-1].tolist() == supernet.alpha.tolist()
    assert alphas.diff()[1:].abs().gt(0).all(axis=None)


def test_search_lowers_the_validation_loss(tmp_path):
    _, history = searched(tmp_path / "supernet.pt", epochs=10)
    assert history["validation_loss"].iloc[-1] < 0.8 * history["validation_loss"].iloc[0]


@pytest.mark.parametrize("batches", [Batches(train=0), Batches(train=6), Batches(validation=9)])
def test_interrupted_search_goes_on_to_the_same_alphas(tmp_path, batches):
    supernet, history = searched(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "supernet.pt", batches)
    resumed, resumed_history = searched(tmp_path / "supernet.pt")
    pd.testing.assert_frame_equal(resumed_history, history, check_exact=True)
    assert same(weights(resumed), weights(supernet))


def test_finished_search_is_not_repeated(tmp_path):
    _, history = searched(tmp_path / "supernet.pt")
    _, again = searched(tmp_path / "supernet.pt", Batches(train=0))
    pd.testing.assert_frame_equal(again, history)


# ---- what the choice was worth


def test_each_operation_is_judged_at_its_own_best_epoch():
    curves = pd.DataFrame(
        {
            "epoch": [1, 1, 2, 2],
            "model": [0, 1, 0, 1],
            "validation_loss": [0.5, 0.3, 0.4, 0.6],
            "validation_accuracy": [0.7, 0.9, 0.8, 0.95],
        }
    )
    assert best_epochs(curves).to_dict("list") == {"operation": [0, 1], "accuracy": [0.8, 0.9]}


def test_ranking_takes_the_last_alphas_and_the_mean_over_seeds():
    history = pd.DataFrame([[9.0] * 37, range(37)], columns=[f"alpha_{number}" for number in range(37)])
    alone = pd.DataFrame(
        {"operation": [*range(37)] * 2, "seed": [0] * 37 + [1] * 37, "accuracy": [0.2] * 37 + [0.4] * 37}
    )
    ranking = rank(history, alone.sample(frac=1, random_state=0))
    assert ranking["operation"].tolist() == ranking["alpha"].tolist() == list(range(37))
    assert ranking["name"].iloc[[0, 36]].tolist() == ["32 ReLU x2", "linear"]
    assert ranking["activation"].value_counts().to_dict() == {"ReLU": 12, "Tanh": 12, "Sigmoid": 12, "linear": 1}
    assert np.allclose(ranking[["accuracy", "std", "seed_0", "seed_1"]], [0.3, 0.2 / 2**0.5, 0.2, 0.4])


def test_perfect_ranking_has_correlation_one_and_no_regret():
    judgement = judge(hand_made_ranking([0.3, 0.2, 0.1], [0.9, 0.8, 0.7]), supernet_accuracy=0.95)
    correlations = judgement[["Spearman, all", "Spearman, 10 best", "Kendall, all", "Spearman, seed with seed"]]
    assert correlations.tolist() == pytest.approx([1, 1, 1, 1])
    assert judgement["regret of the choice"] == 0
    assert judgement["discretisation gap"] == pytest.approx(0.05)


def test_one_swapped_pair_costs_what_it_should():
    judgement = judge(hand_made_ranking([0.2, 0.3, 0.1], [0.9, 0.8, 0.7]), supernet_accuracy=0.75)
    assert judgement["Spearman, all"] == pytest.approx(1 - 6 * 2 / (37 * (37**2 - 1)))
    assert judgement["Spearman, 10 best"] == pytest.approx(1 - 6 * 2 / (10 * 99))
    assert judgement["Kendall, all"] == pytest.approx(1 - 2 / (37 * 36 / 2))
    assert judgement["regret of the choice"] == pytest.approx(0.1)
    assert judgement["discretisation gap"] == pytest.approx(-0.05)


def test_regret_of_a_random_choice_is_the_mean_over_operations():
    ranking = hand_made_ranking([0.3], [0.9])
    expected = 0.9 - (0.9 + sum(range(36)) / 1000) / 37
    assert judge(ranking, 0.9)["regret of a random choice"] == pytest.approx(expected)
