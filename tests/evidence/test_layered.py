from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from torch.nn.functional import cross_entropy

from fomo.data.batches import FeatureBatches, loader
from fomo.evidence import layered
from fomo.evidence.blocks import ACTIVATIONS, NORMS, Block, BlockHead
from fomo.evidence.darts_variants import unrolled
from fomo.evidence.layered import (
    BLOCKS,
    DROPOUTS,
    FIRST_BLOCKS,
    HIDDEN_LAYERS,
    SIZE,
    WIDTHS,
    LayeredSupernet,
    contest,
    random_head,
    search_layered,
)
from fomo.stages.head_search import search_head
from fomo.training.loop import fit, make_optimizer

CPU = torch.device("cpu")
METHODS = ["DARTS", "random search", "successive halving"]
FEATURES, CLASSES = 8, 3
NARROW = [  # without norms
    BlockHead(),
    BlockHead(64, (Block("GELU"),)),
    BlockHead(32, (Block("Tanh", dropout=0.2), Block("SiLU"), Block("Sigmoid", residual=True))),
    BlockHead(256, (Block("ReLU"), Block("ReLU", dropout=0.2, residual=True))),
]
WIDE = [
    BlockHead(1024, (Block("SiLU", "batch"),)),
    BlockHead(1024, (Block("GELU", "layer", 0.2), Block("Tanh", "batch", residual=True))),
    BlockHead(1024, (Block("ReLU"), Block("Sigmoid", "layer"), Block("ReLU", "batch", 0.2, residual=True))),
]


@pytest.fixture
def supernet():
    """A supernet of random alphas and of running statistics that are not those of the start."""
    supernet = LayeredSupernet(FEATURES, CLASSES).eval()
    with torch.no_grad():
        for alpha in supernet.alphas.values():
            alpha.normal_()
        for norm in (*supernet.batch_norms, *supernet.layer_norms):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
        for norm in supernet.batch_norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return supernet


@pytest.fixture
def small(monkeypatch):
    """The same space with narrow heads, which train at once."""
    monkeypatch.setattr(layered, "WIDTHS", (8, 16, 32))


def make_one_hot(supernet, head):
    """Gives `head` all the softmaxes; layers that it does not have keep their alphas."""
    with torch.no_grad():
        supernet.alpha_layers[HIDDEN_LAYERS.index(len(head.blocks))] = 1e4
        if head.blocks:
            supernet.alpha_width[WIDTHS.index(head.hidden)] = 1e4
        for number, block in enumerate(head.blocks):
            supernet.alpha_blocks[number][(BLOCKS if number else FIRST_BLOCKS).index(block)] = 1e4


def extract(supernet, head):
    """`head` with the supernet's weights, as far as it is wide."""
    module, inputs = head.build(FEATURES, CLASSES).eval(), FEATURES
    layers = [layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None]
    layers = iter(layers)
    for number, block in enumerate(head.blocks):
        linear = supernet.linears[number]
        next(layers).load_state_dict(
            {"weight": linear.weight[: head.hidden, :inputs], "bias": linear.bias[: head.hidden]}
        )
        if block.norm != "none":
            norms = {"batch": supernet.batch_norms, "layer": supernet.layer_norms}[block.norm]
            next(layers).load_state_dict(norms[number].state_dict())
        inputs = head.hidden
    end = supernet.ends[len(head.blocks)]
    next(layers).load_state_dict({"weight": end.weight[:, :inputs], "bias": end.bias})
    return module


def loaders(train=99):
    features = torch.randn(120, FEATURES, generator=torch.Generator().manual_seed(0)).numpy()
    labels = (features[:, 0] > 0).astype(int) + (features[:, 1] > 0)
    batches = toys.Interrupted(FeatureBatches(features[:80], labels[:80]), train)
    rest = FeatureBatches(features[80:], labels[80:])
    return [loader(part, 20, torch.Generator()) for part in (batches, rest)]


def contested(checkpoint, train=999, seed=3, **options):
    options = {"darts_epochs": 2, "weight_lr": 1e-3, "alpha_lr": 1e-2} | options
    options |= {"epochs": 2, "lr": 1e-3, "seed": seed, "device": CPU, "checkpoint": checkpoint}
    return contest(*loaders(train), FEATURES, CLASSES, **options)


# ---- the space


def test_size_is_the_number_of_different_heads():
    count = 0
    for layers in HIDDEN_LAYERS[1:]:
        count += len(WIDTHS) * len(set(product(FIRST_BLOCKS, *[BLOCKS] * (layers - 1))))
    assert SIZE == count + 1 == 658981


def test_blocks_are_all_there_are():
    settings = set(product(ACTIVATIONS, NORMS, DROPOUTS))
    assert {(block.activation, block.norm, block.dropout) for block in FIRST_BLOCKS} == settings
    assert not any(block.residual for block in FIRST_BLOCKS)
    assert set(BLOCKS) == {Block(*setting, residual) for setting in settings for residual in (False, True)}


def test_random_heads_cover_the_space():
    rng = np.random.default_rng(0)
    heads = [random_head(rng) for _ in range(1500)]
    shares = pd.Series([len(head.blocks) for head in heads]).value_counts(normalize=True)
    assert set(shares.index) == set(HIDDEN_LAYERS)
    assert shares.min() > 0.2
    assert {head.hidden for head in heads} == {0, *WIDTHS}
    assert {head.blocks[0] for head in heads if head.blocks} == set(FIRST_BLOCKS)
    assert {head.blocks[place] for head in heads for place in (1, 2) if len(head.blocks) > place} == set(BLOCKS)


def test_random_head_builds_and_depends_on_the_generator_only():
    heads = [[random_head(rng) for _ in range(20)] for rng in map(np.random.default_rng, (0, 0, 1))]
    assert heads[0] == heads[1] != heads[2]
    for head in heads[0]:
        assert head.build(FEATURES, CLASSES)(torch.randn(4, FEATURES)).shape == (4, CLASSES)


@pytest.mark.parametrize("head", [*NARROW, *WIDE, BlockHead(128, (Block("Tanh"),) * 3)], ids=lambda head: head.name)
def test_multiply_adds_count_the_weights_of_the_matrices(head):
    matrices = [weight for weight in head.build(FEATURES, CLASSES).parameters() if weight.dim() == 2]
    assert head.multiply_adds(FEATURES, CLASSES) == sum(weight.numel() for weight in matrices)


def test_supernet_counts_its_matrices():
    supernet = LayeredSupernet(FEATURES, CLASSES)
    assert supernet.multiply_adds() == FEATURES * 1024 + 2 * 1024**2 + CLASSES * (FEATURES + 3 * 1024)


# ---- the supernet


@pytest.mark.parametrize("head", [*NARROW, *WIDE], ids=lambda head: head.name)
def test_supernet_of_one_hot_alphas_is_the_derived_head(supernet, head):
    make_one_hot(supernet, head)
    assert supernet.derive() == head
    inputs = torch.randn(16, FEATURES)
    torch.testing.assert_close(supernet(inputs), extract(supernet, head)(inputs), atol=1e-4, rtol=1e-4)


def test_supernet_mixes_depths_by_their_alphas(supernet):
    inputs, alpha = torch.randn(5, FEATURES), supernet.alpha_layers.detach().clone()
    logits = []
    for depth in range(4):
        supernet.alpha_layers.data = 1e4 * torch.eye(4)[depth]
        logits.append(supernet(inputs))
    supernet.alpha_layers.data = alpha
    torch.testing.assert_close(supernet(inputs), torch.einsum("d,dbc->bc", alpha.softmax(0), torch.stack(logits)))


def test_masks_leave_the_first_units(supernet):
    assert supernet.masks.sum(1).tolist() == list(WIDTHS)
    assert all((mask.diff() <= 0).all() for mask in supernet.masks)


def test_units_beyond_the_width_do_not_matter(supernet):
    make_one_hot(supernet, NARROW[2])  # 32 wide, three layers
    inputs = torch.randn(5, FEATURES)
    before = supernet(inputs)
    for linear in supernet.linears:
        linear.weight.data[32:] += 1
        linear.bias.data[32:] += 1
    torch.testing.assert_close(supernet(inputs), before, atol=1e-5, rtol=0)
    supernet.linears[0].weight.data[31] += 1
    assert not torch.allclose(supernet(inputs), before, atol=1e-5)


def test_soft_width_scales_units_by_the_widths_that_have_them(supernet):
    """Half width 32, half width 64: units 32 to 63 count half."""
    make_one_hot(supernet, BlockHead(64, (Block("GELU"),)))
    head, inputs = extract(supernet, BlockHead(64, (Block("GELU"),))), torch.randn(5, FEATURES)
    supernet.alpha_width.data = torch.tensor([1e4, 1e4, 0, 0, 0, 0])
    head[-1].weight.data[:, 32:] /= 2
    torch.testing.assert_close(supernet(inputs), head(inputs), atol=1e-5, rtol=0)


def test_dropout_acts_in_training_only(supernet):
    make_one_hot(supernet, NARROW[3])
    inputs = torch.randn(5, FEATURES)
    assert torch.equal(supernet(inputs), supernet(inputs))
    supernet.train()
    assert not torch.equal(supernet(inputs), supernet(inputs))


def test_alphas_are_all_choices_and_nothing_else(supernet):
    sizes = {name: alpha.numel() for name, alpha in supernet.alphas.items()}
    assert list(sizes.values()) == [4, 6, 30, 60, 60]
    assert sum(p.numel() for p in supernet.parameters()) > sum(sizes.values())
    assert all((alpha == 0).all() for alpha in LayeredSupernet(FEATURES, CLASSES).alphas.values())


def test_derived_head_has_the_largest_alphas(supernet):
    head, alphas = supernet.derive(), [alpha.tolist() for alpha in supernet.alphas.values()]
    layers = int(np.argmax(alphas[0]))
    assert len(head.blocks) == layers
    chosen = [space[int(np.argmax(a))] for a, space in zip(alphas[2:], (FIRST_BLOCKS, BLOCKS, BLOCKS), strict=True)]
    assert list(head.blocks) == chosen[:layers]
    supernet.alpha_layers.data = torch.tensor([0.0, 0.1, 0.0, 0.0])
    assert supernet.derive() == BlockHead(WIDTHS[int(np.argmax(alphas[1]))], (chosen[0],))
    supernet.alpha_layers.data = torch.tensor([0.1, 0.0, 0.0, 0.0])
    assert supernet.derive() == BlockHead()


@pytest.mark.parametrize("xi", [0.0, 0.1])
def test_gradient_of_the_alphas_is_that_of_central_finite_differences(small, xi):
    """Along a random direction, in float64: first order, and unrolled."""
    supernet = LayeredSupernet(FEATURES, CLASSES).double().eval()
    alphas = list(supernet.alphas.values())
    train, validation = torch.randn(2, 6, FEATURES, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    batches = train, labels, validation, labels.flip(0).roll(1)
    gradient = torch.autograd.grad(unrolled(supernet, *batches, xi=xi), alphas)
    direction = [torch.randn_like(alpha) for alpha in alphas]
    losses = []
    for step in (1e-5, -2e-5):
        for alpha, along in zip(alphas, direction, strict=True):
            alpha.data += step * along
        losses.append(unrolled(supernet, *batches, xi=xi).item())
    expected = sum((a * b).sum() for a, b in zip(gradient, direction, strict=True)).item()
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected, rel=1e-4)


# ---- the contest


def test_contest_has_a_head_of_the_space_from_each_method(small, tmp_path):
    table = contested(tmp_path / "layered.pt")
    assert table["method"].tolist() == METHODS
    assert (table["seed"] == 3).all()
    assert (table["seconds"] > 0).all()
    for head in table["head"]:
        assert head == BlockHead() or head.hidden in (8, 16, 32)
        assert head == BlockHead() or head.blocks[0] in FIRST_BLOCKS
        assert set(head.blocks[1:]) <= set(BLOCKS)
        assert len(head.blocks) in HIDDEN_LAYERS


def test_methods_have_equal_cost(small, tmp_path):
    """Of the heads that a method tries, the last is the first that reaches the supernet's multiplications."""
    tried = contested(tmp_path / "layered.pt").set_index("method")["tried"]
    budget = 2 * 2 * LayeredSupernet(FEATURES, CLASSES).multiply_adds()
    rng = np.random.default_rng(3)
    for method, epochs in (("random search", 2), ("successive halving", 1 + 1 / 2)):
        costs = [epochs * random_head(rng).multiply_adds(FEATURES, CLASSES) for _ in range(tried[method])]
        assert sum(costs[:-1]) < budget <= sum(costs)
    assert tried["DARTS"] == 1
    assert tried["random search"] > 3


def test_contest_is_deterministic_and_leaves_the_callers_random_numbers_alone(small, tmp_path):
    state = torch.get_rng_state()
    first = contested(tmp_path / "first.pt")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = contested(tmp_path / "second.pt")
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"))
    assert contested(tmp_path / "other.pt", seed=4)["head"].tolist() != first["head"].tolist()


@pytest.mark.parametrize("batches", [6, 9])
def test_interrupted_contest_goes_on_to_the_same_heads(small, tmp_path, batches):
    """Killed in the second epoch of the search (an epoch is 4 batches), or while random heads train."""
    whole = contested(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        contested(tmp_path / "layered.pt", train=batches)
    with pytest.raises(KeyboardInterrupt):  # what was searched is not searched again
        contested(tmp_path / "layered.pt", train=8 - 4 * (batches // 4))
    resumed = contested(tmp_path / "layered.pt")
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_supernet_trains_to_a_lower_loss(small):
    supernet = LayeredSupernet(FEATURES, CLASSES)
    optimizer = torch.optim.Adam(supernet.parameters(), 1e-2)
    features, labels = next(iter(loaders()[0]))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(cross_entropy(supernet(features), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in supernet.parameters())


def test_run_searches_the_space_with_every_seed_and_trains_what_was_found_beside_its_own_head(
    finished, small, monkeypatch
):
    trained, train = [], layered.train_each

    def watched(*args, **options):
        trained.append(train(*args, **options))
        return trained[-1]

    monkeypatch.setattr(layered, "train_each", watched)
    table = search_layered(finished.run)
    assert table["method"].tolist() == [*METHODS, *METHODS, "one of the 37", "linear"]
    assert table["seed"].tolist()[:6] == [0] * 3 + [1] * 3
    assert table["name"].tolist()[6:] == [search_head(finished.run).choice["chosen"], "linear"]
    right = np.stack(trained[-2:])  # of the two seeds, in the end
    assert table["accuracy"].tolist() == pytest.approx(right.mean(0).tolist())
    assert table["std"].tolist() == pytest.approx(right.std(0, ddof=1).tolist())


def test_random_heads_train_as_if_alone_and_one_that_diverges_has_no_accuracy():
    torch.manual_seed(0)
    networks = [BlockHead().build(FEATURES, CLASSES) for _ in range(3)]
    networks[1][0].weight.data.fill_(torch.nan)
    options = {"epochs": 2, "seed": 3, "lr": 1e-2, "device": CPU}
    scores = layered.train_each(networks, *loaders(), [1, 2], **options)
    torch.manual_seed(0)
    alone = [BlockHead().build(FEATURES, CLASSES) for _ in range(3)]
    curves = fit(alone[2], make_optimizer(alone[2], "adam", 1e-2, 0.0), *loaders(), 2, seed=3, device=CPU)
    assert scores[0] == 0
    assert scores[1] == curves.loc[curves["validation_loss"].idxmin(), "validation_accuracy"] > 0
    assert torch.equal(networks[0][0].weight, alone[0][0].weight)
