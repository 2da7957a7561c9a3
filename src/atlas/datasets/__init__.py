"""Datasets: what each is, how it is acquired and verified, and how it is read."""

from atlas.datasets.acquisition import acquire, stand_in
from atlas.datasets.base import Dataset, DatasetError, DatasetLayoutError, Source, dataset_names, get_dataset
from atlas.datasets.manifest import Manifest, read_manifest, stale_data

__all__ = [
    "Dataset",
    "DatasetError",
    "DatasetLayoutError",
    "Manifest",
    "Source",
    "acquire",
    "dataset_names",
    "get_dataset",
    "read_manifest",
    "stale_data",
    "stand_in",
]
