"""What computes: backbones and their weights, the candidate heads, all heads at once, whole classifiers.

From images to logits: weights, backbones (images to features), heads (features to logits), bank (many heads in one),
classifier (backbones with heads), inference (all images through one of them), gradcam (where they look). Trains
nothing. Knows storage and config only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "backbones": ["Backbone", "load_backbone"],
        "heads": ["HEADS", "LINEAR", "Head"],
        "bank": ["HeadBank"],
        "classifier": ["Classifier", "FinalClassifier", "Network"],
        "inference": ["predict", "store_features"],
    },
)
