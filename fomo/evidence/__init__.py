"""What measures fomo itself, and no run uses: what the searches are worth (`make evidence`), what fomo's ways save
(`make bench`), whether a run can be trusted (`make torture`). Knows all rooms; only the command line knows it.

searches (all of it, in turn), minutes (fomo beside its peers, at equal minutes), deadlines (whether runs end in time),
steps (finetunings of so many steps), label_errors (wrong labels that are found), problems (what studies are compared
on), finetuning (recipes, cheaper trials), darts_variants; bench, bench_memory, bench_table; torture, attempts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["bench", "finetuning", "steps"],
    submod_attrs={
        "searches": ["stored", "summary"],
    },
)
