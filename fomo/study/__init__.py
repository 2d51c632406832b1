"""Bayesian optimisation of any objective: search space, surrogate, trials, the pool they run on, and the study.

Knows storage and config only, no torch and no images: it can be used on its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "space": ["Choice", "Float", "Space"],
        "study": ["Study"],
    },
)
