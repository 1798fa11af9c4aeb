"""Ray: offline jobs and live traffic on more than one machine, with the guarantees that one machine has."""

from .dataset import rerank_dataset
from .job import Workers, rerank_on_ray

__all__ = ["Workers", "rerank_dataset", "rerank_on_ray"]
