"""The file of a model: what comes from anybody is read, or refused by name, and executes nothing."""

import json
import os
import re

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
import toys
from test_model import build

from fomo import load_model, model_file
from fomo.config import UserError
from fomo.networks.heads import HEADS


@pytest.fixture(scope="module")
def content() -> bytes:
    """A whole model's file."""
    torch.manual_seed(0)
    model = build(HEADS[3:4])
    state = {name: value.contiguous() for name, value in model.classifier.state_dict().items()}
    text = json.dumps(model.description)
    metadata = {"fomo": text, "fomo_format": model_file.FORMAT, "sha256": model_file._digest(text, state)}
    return safetensors.torch.save(state, metadata)


@pytest.fixture
def path(content, tmp_path):
    """Where that file lies, to be changed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def taken_apart(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return safetensors.torch.load(content), header["__metadata__"]


def rewrite(path, *, text: str | None = None, sign: bool = True, metadata=(), tensors=(), **description) -> None:
    """Replaces parts of a model's file, and signs it as anybody can: the digest keeps no secret."""
    state, known = taken_apart(path.read_bytes())
    state = {name: value for name, value in (state | dict(tensors)).items() if value is not None}
    text = text or json.dumps(json.loads(known["fomo"]) | description)
    known |= {"fomo": text, "sha256": model_file._digest(text, state)} if sign else {}
    path.write_bytes(safetensors.torch.save(state, known | dict(metadata)))


def refused(path, words: str = "") -> None:
    """The file is refused by its name and these words."""
    with pytest.raises(UserError, match=re.escape(words or path.name)) as raised:
        load_model(path)
    assert str(path) in str(raised.value)


def test_same_model_is_the_same_bytes(tmp_path):
    """safetensors alone would write its three metadata in six orders."""
    torch.manual_seed(0)
    model, written = build(HEADS[3:4]), set()
    for _ in range(10):
        model_file.write_model(tmp_path / "model.safetensors", model.classifier, model.description)
        written.add((tmp_path / "model.safetensors").read_bytes())
    assert len(written) == 1
    assert load_model(tmp_path / "model.safetensors").description == model.description


def test_file_that_is_written_anew_is_read(path):
    rewrite(path, classes=["a", "b", "c"])
    assert load_model(path).classes == ["a", "b", "c"]


def test_what_is_no_file_or_no_model_is_refused(path, tmp_path):
    refused(tmp_path / "none.safetensors", "No such file")
    refused(tmp_path, "no file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no file")
    path.write_text("not a model")
    refused(path, "cannot be read")
    torch.save({"weight": torch.zeros(3)}, path)
    refused(path, "cannot be read")
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata)
        refused(path, "not a model that fomo stored")


@pytest.mark.parametrize("version", ["0", "1", "", "2.0", "9" * 1000])
def test_file_of_another_format_is_refused_with_what_to_do(path, version):
    rewrite(path, metadata={"fomo_format": version})
    refused(path, "train it anew")


def test_file_that_is_cut_off_is_refused(path, content):
    for kept in [0, 4, 8, 200, -1, *np.random.default_rng(0).integers(0, len(content), 20)]:
        path.write_bytes(content[:kept])
        refused(path, "cannot be read")


def test_file_with_a_flipped_bit_is_refused(path, content):
    header, random = 8 + int.from_bytes(content[:8], "little"), np.random.default_rng(0)
    for place in [*random.integers(0, header, 40), *random.integers(header, len(content), 4)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        refused(path)


DEEP = "[" * 10**6
WRONG = [
    *({"backbone": name} for name in ("hf-hub:timm/resnet18", "local-dir:/tmp", "resnet18.local-dir:/tmp", "/tmp", "")),
    *({"backbone": name} for name in ("resnet18", "test_vit.no_such_tag", 7, None, ["test_vit"])),
    *({"image_size": size} for size in (10**9, 10**400, 0, -32, 32.0, "32", True, None, 31)),
    *({"heads": heads} for heads in ([], {}, "x", [{}], [{"hidden": 2**40, "activation": "ReLU", "layers": 2}])),
    {"heads": [{"hidden": 32, "activation": "GELU", "layers": 2}]},
    *({"heads": [{"hidden": 32, "activation": "__import__('os')", "layers": 2}]} for _ in range(1)),
    *({"views": views} for views in ([], [8], [-1], [0, 0], [1], [0, True], 2, "0", [0, 1.0], [[0]])),
    *({"temperatures": [one]} for one in (0, -1.0, float("nan"), float("inf"), "1", None, 10**400, True)),
    *({"temperatures": several} for several in ([], 1.0, [1.0, 1.0], [1.0] * 10**6)),
    *({"weights": several} for several in ([], 1.0, [0.5, 0.5], [0], [-1.0], [1.5], [float("nan")], ["1"], [True])),
    *({"handicaps": several} for several in ([], [0.0], [0.0] * 4, [float("nan")] * 3, ["0"] * 3, 0)),
    *({"classes": names} for names in ([], ["a"], ["a", "a", "b"], ["a", "b", 3], "abc", ["a", "b"], list("abcd"))),
    *({"fit": fit} for fit in ("stretch", None, ["crop"], 1)),
    *({"crop": crop} for crop in (0, -1, 1.5, 1e-9, float("nan"), "0.9", None)),
    *({"channels": channels} for channels in (0, 2, 4, True, 1.0, "1")),
    *({"ranges": kinds} for kinds in ([], {"uint16": 4095}, {"uint16": [0]}, {"uint16": [1, 0]}, {"uint16": "ab"})),
    {"ranges": {"uint16": [0, float("inf")]}},
    {"more": 1},
    *({"text": text} for text in ("{", "[]", "7", '"text"', "null", "{}", DEEP, '{"backbone":' * 10**5, "9" * 10**5)),
]


@pytest.mark.parametrize("changes", WRONG, ids=lambda changes: re.sub(r"\W+", " ", repr(changes))[:40])
def test_description_that_is_at_odds_with_itself_or_with_the_weights_is_refused(path, changes, monkeypatch):
    monkeypatch.setattr(timm.models._hub, "load_model_config_from_hf", None)
    rewrite(path, **changes)
    refused(path)


@pytest.mark.parametrize("name", ["unlike.axes", "unlike.levels", "networks.0.backbone.network.norm.weight"])
@pytest.mark.parametrize("value", [None, torch.zeros(7, 5, 3), torch.zeros(64, dtype=torch.int64), torch.zeros(())])
def test_tensor_that_is_missing_or_of_another_shape_or_kind_is_refused(path, name, value):
    rewrite(path, tensors={name: value})
    refused(path, "tensors")


@pytest.mark.parametrize("name", ["networks.1.heads.0.0.weight", "unlike.more", "__class__", "x" * 10**5])
def test_tensor_that_nobody_described_is_refused(path, name):
    rewrite(path, tensors={name: torch.zeros(3)})
    refused(path, "tensors")


def with_header(path, header: bytes, size: int = 0) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, path.stat().st_size + size)  # what nobody has written takes no room


def test_header_that_claims_more_than_there_is_or_ever_was_is_refused_unread(path, content):
    _, metadata = taken_apart(content)
    tensor = {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}
    header = json.dumps({"__metadata__": metadata, "networks.0.heads.0.0.weight": tensor}).encode()
    with_header(path, header)
    refused(path, "cannot be read")
    with_header(path, header, size=2**33)
    refused(path, "tensors")
    with_header(path, b"{" + b" " * 2**25, size=2**10)
    refused(path, "larger than any model's")
    with_header(path, b'{"a":' * 10**5)
    refused(path, "cannot be read")
    path.write_bytes(b"\xff" * 100)
    refused(path, "cannot be read")


def test_nothing_is_loaded_before_all_is_compared(path, monkeypatch):
    rewrite(path, heads=[{"hidden": 256, "activation": "Tanh", "layers": 4}])
    monkeypatch.setattr(model_file, "_digest", None)
    refused(path, "tensors")


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet34", "convnext_nano", "test_vit", "swin_tiny_patch4_window7_224"]
)
def test_networks_are_described_alike_whether_they_take_memory_or_not(name):
    description = {
        "backbone": name,
        "image_size": 224,
        "heads": [model_file._HEADS[0]],
        "views": [0],
        "classes": toys.CLASSES,
    }
    with torch.device("meta"):
        bare = model_file._network(description)
    real = model_file._network(description).state_dict()
    assert {name: (one.dtype, one.shape) for name, one in bare.state_dict().items()} == {
        name: (one.dtype, one.shape) for name, one in real.items()
    }
    assert all(one.dtype in model_file.KINDS for one in real.values())
