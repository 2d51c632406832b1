"""Images and their labels: fetched, found in any layout, looked over, divided, and dealt out in batches.

In the order of the data: archives, sources (where files lie), tree, folders, tables, columns and names (what is meant),
dataset and datasets, division, numbers (what files hold), images (decoded once), survey (their range), look and
inspection (what is wrong with them), batches; and given, what a person holds that is no data set. Knows storage, paths
and config only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["Dataset"],
        "datasets": ["load_dataset"],
        "inspection": ["Inspection", "inspect"],
        "batches": ["FeatureBatches", "ImageBatches", "augment", "loader"],
    },
)
