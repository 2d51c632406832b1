"""The pipeline: a module for each step or a few of them, in order; each reads what the ones before it have stored.

preprocessing, finetuning (first point, study, race), head_search (features, DARTS, study, head) with selection,
ensemble, final, evaluation with metrics. common is what they share. Knows all rooms below but figures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "preprocessing": ["preprocess"],
        "finetuning": ["FINETUNING_SPACE", "finetune", "finetune_best", "optimize_finetuning", "race"],
        "head_search": ["HEAD_SPACE", "extract_features", "search_head", "train_head", "tune_head"],
        "ensemble": ["train_members"],
        "final": ["compose"],
        "evaluation": ["evaluate"],
        "metrics": ["beside_report", "gap"],
    },
)
