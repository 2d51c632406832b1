"""The pipeline: a module for each step or a few of them, in order; each reads what the ones before it have stored.

planning (with facts, contest, forecast and rules), preprocessing, probing, finetuning (first point, study),
racing, features, head_search (DARTS, study, head) with selection, ensemble, final, evaluation with metrics, suspecting
(wrong labels). common is what they share. Knows all rooms below but figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "preprocessing": ["preprocess"],
        "planning": ["plan"],
        "probing": ["probe"],
        "finetuning": ["FINETUNING_SPACE", "finetune", "optimize_finetuning"],
        "racing": ["finetune_best", "race"],
        "features": ["extract_features"],
        "head_search": ["HEAD_SPACE", "search_head", "train_head", "tune_head"],
        "ensemble": ["train_members"],
        "final": ["compose"],
        "evaluation": ["evaluate"],
        "suspecting": ["suspects"],
        "metrics": ["beside_report", "gap", "surest"],
    },
)
