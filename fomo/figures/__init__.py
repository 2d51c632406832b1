"""All figures: each a function of stored numbers that draws on an axes and returns it. Knows no other room, no torch.

run (images, maps, curves, confusion, what each step brought), study (trials, incumbent, surrogate), heads (alphas,
accuracies, rules), on what drawing has.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["class_balance", "comparison", "confusion", "heatmaps", "image_grid", "learning_curves", "overview"],
        "study": ["contest", "importance", "incumbent", "losses", "parallel_coordinates", "slices"],
        "heads": ["accuracies", "alpha_against_accuracy", "alpha_trajectories", "alphas", "rules"],
    },
)
