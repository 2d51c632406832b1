from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from torch.nn.functional import cross_entropy

from fomo.evidence import darts_variants
from fomo.evidence.darts_variants import VARIANTS, Normalized, Tempered, unrolled, variants
from fomo.networks.bank import HeadBank
from fomo.networks.heads import HEADS, LINEAR, Head
from fomo.storage import read_table
from fomo.training.darts import MixedOperation

SMOOTH = [Head(4, "Tanh", 2), Head(4, "Sigmoid", 3), LINEAR]  # no kinks, so finite differences are exact


# ---- a temperature, and one scale


def test_shares_are_those_of_the_alphas_divided_by_the_temperature_and_so_is_their_gradient():
    alpha = torch.tensor([0.0, 0.1, 0.3])
    supernet = Tempered(HeadBank(SMOOTH, 8, 3), temperature=0.1)
    supernet.alpha.data = alpha.clone()
    torch.testing.assert_close(supernet.shares(), (10 * alpha).softmax(0))
    plain = MixedOperation(supernet.bank)
    plain.alpha.data = 10 * alpha
    features = torch.randn(5, 8)
    for one in (supernet, plain):
        one(features).square().sum().backward()
    torch.testing.assert_close(supernet.alpha.grad, 10 * plain.alpha.grad)


def test_normalised_mixture_does_not_depend_on_the_scale_of_a_head():
    modules, features = [LINEAR.build(8, 3) for _ in range(3)], torch.randn(40, 8)

    def mixed(kind):
        return kind(HeadBank([LINEAR] * 3, 8, 3, modules=modules))(features)

    before = mixed(Normalized)
    for parameter in modules[1].parameters():
        parameter.data *= 100
    loud = modules[1](features).argmax(1)
    torch.testing.assert_close(mixed(Normalized), before, atol=1e-3, rtol=0)
    assert (mixed(Normalized).argmax(1) == loud).float().mean() < 0.9
    assert (mixed(MixedOperation).argmax(1) == loud).float().mean() > 0.95


def test_normalised_candidates_have_one_scale_that_is_learned():
    supernet = Normalized(HeadBank(HEADS, 8, 3))
    supernet.scale.data.fill_(2.0)
    candidates = supernet.candidates(torch.randn(30, 8))
    torch.testing.assert_close(candidates.std(dim=(1, 2)), torch.full((37,), 2.0), atol=1e-2, rtol=0)
    torch.testing.assert_close(candidates.mean(dim=(1, 2)), torch.zeros(37), atol=1e-4, rtol=0)
    candidates.square().sum().backward()
    assert supernet.scale.grad != 0


# ---- the second-order gradient


class Quadratic(torch.nn.Module):
    """One weight and one alpha; the cross-entropy of its logits (x w, alpha) is known in closed form."""

    def __init__(self, weight, alpha):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.alpha = torch.nn.Parameter(torch.tensor(alpha, dtype=torch.float64))

    def forward(self, x):
        return torch.stack([x * self.weight, self.alpha.expand(len(x))], dim=1)


def test_unrolled_gradient_is_the_known_one_of_one_weight_and_one_alpha():
    """With s = sigmoid(alpha - w), a step on class 0 takes w to w + xi s; then L = log(1 + exp(alpha - w))."""
    weight, alpha, xi = 0.3, -0.2, 0.7
    supernet, one, first = Quadratic(weight, alpha), torch.ones(1, dtype=torch.float64), torch.tensor([0])
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    share = sigmoid(alpha - weight)
    stepped = weight + xi * share
    loss = unrolled(supernet, one, first, one, first, xi=xi)
    assert loss.item() == pytest.approx(np.log1p(np.exp(alpha - stepped)))
    expected = sigmoid(alpha - stepped) * (1 - xi * share * (1 - share))
    assert torch.autograd.grad(loss, supernet.alpha)[0].item() == pytest.approx(expected)


@pytest.fixture
def small():
    """A supernet of three heads without kinks in float64, and a train and a validation batch."""
    supernet = MixedOperation(HeadBank(SMOOTH, 8, 3)).double()
    supernet.alpha.data = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    train, validation = torch.randn(2, 6, 8, dtype=torch.float64)
    return supernet, (train, labels, validation, labels.flip(0).roll(1))


def alpha_gradient(supernet, xi, batches):
    return torch.autograd.grad(unrolled(supernet, *batches, xi=xi), supernet.alpha)[0]


def weights(supernet):
    return [weight.detach().clone() for weight in supernet.bank.parameters()]


def loss_after_a_step(supernet, xi, x_train, y_train, x_val, y_val):
    """The validation loss after a step of gradient descent of the weights; all is put back."""
    gradients = torch.autograd.grad(cross_entropy(supernet(x_train), y_train), list(supernet.bank.parameters()))
    before = weights(supernet)
    with torch.no_grad():
        for weight, gradient in zip(supernet.bank.parameters(), gradients, strict=True):
            weight -= xi * gradient
        loss = cross_entropy(supernet(x_val), y_val).item()
        for weight, value in zip(supernet.bank.parameters(), before, strict=True):
            weight.copy_(value)
    return loss


def test_unrolled_gradient_is_that_of_central_finite_differences_and_no_weight_is_changed(small):
    supernet, batches = small
    before, differences = weights(supernet), []
    gradient = alpha_gradient(supernet, 0.5, batches)
    assert all(map(torch.equal, weights(supernet), before))
    for operation in range(3):
        losses = []
        for step in (1e-4, -2e-4):
            supernet.alpha.data[operation] += step
            losses.append(loss_after_a_step(supernet, 0.5, *batches))
        supernet.alpha.data[operation] += 1e-4
        differences.append((losses[0] - losses[1]) / 2e-4)
    expected = torch.tensor(differences, dtype=torch.float64)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


def test_unrolled_gradient_differs_from_the_first_order_one_unless_xi_is_zero(small):
    supernet, batches = small
    loss = cross_entropy(supernet(batches[2]), batches[3])
    first = torch.autograd.grad(loss, supernet.alpha)[0]
    torch.testing.assert_close(alpha_gradient(supernet, 0.0, batches), first)
    assert (alpha_gradient(supernet, 0.5, batches) - first).norm() > 0.01 * first.norm()


# ---- what each is worth


def test_each_variant_takes_another_path_and_rows_that_are_stored_are_not_searched_again(
    copied, dataset, tmp_path, monkeypatch
):
    """A search of one epoch on few images, judged by accuracies that the first operations have the best of."""
    scores = pd.DataFrame({"operation": [*range(37)] * 2, "alone": np.tile(np.linspace(0.9, 0.1, 37), 2)})
    monkeypatch.setattr(darts_variants, "RESULTS", tmp_path)
    monkeypatch.setattr(darts_variants, "search_head", lambda _: None)
    monkeypatch.setattr(darts_variants, "open_stage", lambda *_: SimpleNamespace(table=lambda _: scores))
    run = toys.tiny_run(dataset, darts_epochs=1, head_images=15)
    table = variants(run)
    assert table["search"].tolist() == list(VARIANTS)
    assert table["spread of alpha"].nunique() == len(VARIANTS)
    assert table["regret"].between(0, 0.8).all()
    assert table[["spearman", "kendall"]].stack().between(-1, 1).all()
    monkeypatch.setattr(darts_variants, "search_alphas", None)
    assert variants(run)["search"].tolist() == list(VARIANTS)
    stored = read_table(tmp_path / "darts_variants.csv")
    assert np.allclose(stored["regret_std"], table["regret_std"])
