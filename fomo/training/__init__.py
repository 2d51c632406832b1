"""What trains: the training loop, DARTS, and many heads at once.

loop (any network), darts (supernet and alphas), bank_training with bank_optimizer (the heads of a bank side by side),
halving (the better half goes on), logistic (the probe's head), calibration. Knows networks and data.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loop": ["DivergedError", "fit", "make_optimizer"],
        "darts": ["MixedOperation", "search"],
        "bank_training": ["fit_bank"],
        "halving": ["successive_halving"],
    },
)
