"""The file of a model: how it is written, and how one that anybody may have sent is read.

A .safetensors file holds numbers and text, and nothing in it is executed. Its text is not believed either: what it
describes is checked, and compared with the tensors that are there, before memory is taken for it.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
import timm
import torch

from fomo.config import CHOICES, UserError, some
from fomo.networks.backbones import Backbone
from fomo.networks.classifier import FinalClassifier, Network
from fomo.networks.heads import HEADS
from fomo.networks.unlike import Unlike
from fomo.storage import write_bytes

FORMAT = "2"  # another one: the description has other parts, or the tensors other names
HEADER = 2**24  # bytes that names, shapes and description take at most
SIDE = 4096  # pixels, of the largest image that a network is built for
KINDS = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}


def write_model(path: Path, classifier: FinalClassifier, description: dict) -> None:
    """Stores a classifier and what `describes` it, with a digest of both, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    text = json.dumps(description)
    metadata = {"fomo": text, "fomo_format": FORMAT, "sha256": _digest(text, state)}
    write_bytes(path, _in_order(safetensors.torch.save(state, metadata)))


def _in_order(content: bytes) -> bytes:
    """A file whose metadata are in the order of their names, so that the same model is the same bytes: safetensors
    writes them in any order (its issue 584)."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers after it begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_model(path: Path) -> tuple[FinalClassifier, dict]:
    """The classifier and its description that `write_model` stored. Raises `UserError`, at once and before much memory
    is taken, for a file that is none, damaged, of another version, or at odds with itself."""
    try:
        return _read(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"model {path} cannot be read ({error})") from error


def _read(path: Path) -> tuple[FinalClassifier, dict]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"model {path} cannot be read (it is no file); give the model.safetensors of a run")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if HEADER < length < path.stat().st_size:
        raise UserError(f"model {path} cannot be read (its header of {length} bytes is larger than any model's)")
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if "fomo" not in metadata:
            raise UserError(f"{path} is not a model that fomo stored")
        if metadata.get("fomo_format") != FORMAT:
            raise UserError(
                f"model {path} is of format {metadata.get('fomo_format', '0')[:20]}, and this fomo reads format "
                f"{FORMAT}: load it with the version that stored it, or train it anew"
            )
        description = _parse(metadata["fomo"], path)
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        _compare({name: (one.get_dtype(), tuple(one.get_shape())) for name, one in found.items()}, description, path)
        state = {name: file.get_tensor(name) for name in found}
    if metadata.get("sha256") != _digest(metadata["fomo"], state):
        raise UserError(f"model {path} is damaged: its digest is not that of its content; copy or train it anew")
    levels = {name.removeprefix("unlike."): value for name, value in state.items() if name.startswith("unlike.")}
    networks = [_network(description) for _ in description["temperatures"]]
    parts = (description[name] for name in ("temperatures", "weights", "handicaps"))
    classifier = FinalClassifier(networks, *parts, Unlike(**levels))
    classifier.load_state_dict(state)
    return classifier.eval(), description


def _digest(text: str, state: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of description and tensors."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.reshape(-1).numpy())
    return digest.hexdigest()


def _parse(text: str, path: Path) -> dict:
    """The description in a file. Raises `UserError` unless each of its parts is what it can be."""
    try:
        description = json.loads(text)
        wrong = [name for name, fits in _PARTS.items() if not fits(description[name])]
        for one, other in (("handicaps", "classes"), ("weights", "temperatures")):
            if not wrong and len(description[one]) != len(description[other]):
                wrong = [one]
        if not wrong and description["image_size"] > SIDE * description["crop"]:
            wrong = ["crop"]
        wrong += sorted(set(description) - set(_PARTS))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the description in model {path} is not one that fomo writes ({error!r:.200})") from error
    if wrong:
        shown = some([f"{name}: {json.dumps(description[name])}" for name in wrong])
        raise UserError(f"the description in model {path} is not one that fomo writes ({shown})")
    return description


def _number(one, low: float = -1e12, high: float = 1e12) -> bool:
    return type(one) in (int, float) and low <= one <= high  # which holds for no NaN


def _whole(one, low: int, high: int) -> bool:
    return type(one) is int and low <= one <= high


def _listed(several, fits) -> bool:
    return isinstance(several, list) and len(several) > 0 and all(map(fits, several))


_HEADS = [asdict(head) for head in HEADS]
_PARTS = {  # of a description, and whether a value can be theirs
    "backbone": lambda one: isinstance(one, str) and timm.is_model(one),  # no address, and no folder
    "heads": lambda several: _listed(several, _HEADS.__contains__),
    "views": lambda several: (
        _listed(several, lambda one: _whole(one, 0, 7)) and several == [0, *sorted({*several} - {0})]
    ),
    "temperatures": lambda several: _listed(several, lambda one: _number(one, 1e-6)),
    "weights": lambda several: _listed(several, lambda one: _number(one, 1e-6, 1)),
    "handicaps": lambda several: _listed(several, _number),
    "classes": lambda names: _listed(names, lambda one: isinstance(one, str)) and len(set(names)) == len(names) > 1,
    "image_size": lambda one: _whole(one, 1, SIDE),
    "fit": lambda one: one in CHOICES["fit"],
    "crop": lambda one: _number(one, 1e-12, 1),
    "channels": lambda one: type(one) is int and one in (1, 3),
    "ranges": lambda kinds: isinstance(kinds, dict) and all(map(_range, kinds.values())),
}


def _range(ends) -> bool:
    return _listed(ends, _number) and len(ends) == 2 and ends[0] < ends[1]


def _compare(found: dict[str, tuple], description: dict, path: Path) -> None:
    """Raises `UserError` unless the tensors found (name: kind, shape) are those of the classifier described."""
    try:
        with torch.device("meta"):  # takes no memory
            network = _network(description)
    except Exception as error:  # whatever a network can say of a size that it is not made for
        raise UserError(f"model {path} describes what cannot be built ({error!r:.200})") from error
    parts = {name: (KINDS.get(value.dtype), tuple(value.shape)) for name, value in network.state_dict().items()}
    count, features = len(description["temperatures"]), network.backbone.num_features
    axes, levels = (found.get(f"unlike.{name}", ("", ()))[1][:1] or (0,) for name in ("axes", "levels"))  # any number
    shapes = {"mean": (features,), "axes": (*axes, features), "levels": levels}
    if len(found) != (described := count * len(parts) + len(shapes)):  # before as many are listed as is claimed
        raise UserError(f"model {path} has {len(found)} tensors, and describes {described}")
    expected = {f"networks.{number}.{name}": one for number in range(count) for name, one in parts.items()}
    expected |= {f"unlike.{name}": ("F32", shape) for name, shape in shapes.items()}
    wrong = [f"{name}: {found.get(name)}, not {one}" for name, one in expected.items() if found.get(name) != one]
    if wrong:
        raise UserError(f"the tensors in model {path} are not those that it describes ({some(wrong)})")


def _network(description: dict) -> Network:
    """One of the networks described, its weights yet to be loaded."""
    backbone = Backbone(description["backbone"], description["image_size"])
    heads = [HEADS[_HEADS.index(one)] for one in description["heads"]]
    built = [head.build(backbone.num_features, len(description["classes"])) for head in heads]
    return Network(backbone, built, tuple(description["views"]))
