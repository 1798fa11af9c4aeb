"""`rerank_dataset`: a step of a Ray Data pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cluster import require_ray
from .model import Model

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def rerank_dataset(
    dataset: Dataset,
    model: str | Path | None = None,
    *,
    query: str = "query",
    documents: str = "documents",
    ranking: str = "ranking",
    workers: int | tuple[int, int] = 1,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
    queries_together: int = 16,
    engine: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """Add to each row, a query with its documents, the ranking of these.

    Args:
        dataset: rows with at least the two columns named next.
        model: as `Reranker.from_pretrained`; every worker loads it.
        query: column with the query's text.
        documents: column with its documents: a list of strings, or of structs with `id`, `title` and `text`.
        ranking: column to add: a list of structs, best first, with the fields of `RankedDocument.to_dict`.
        workers: how many, or from how many to how many as the work demands.
        cpus_per_worker, gpus_per_worker: what each takes of its node.
        queries_together: rows of a call to `Reranker.rerank_many`, which fills its batches from all of them.
        engine: further arguments of `Reranker.from_pretrained`.
        options: arguments of `Reranker.rerank_many`: `top_k`, `cut`, `fuse`, `budget_ms` …

    Raises:
        MissingDependencyError: Ray is not installed.

    Returns:
        The dataset with the column; lazy, as all of Ray Data. A worker that fails raises when it is consumed.
    """
    require_ray()
    import ray.data

    least, most = (workers, workers) if isinstance(workers, int) else workers
    return dataset.map_batches(
        _RowWorker,
        fn_constructor_args=(Model(None if model is None else str(model), dict(engine or {})),),
        fn_constructor_kwargs={"names": (query, documents, ranking), "options": options},
        batch_size=queries_together,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
    )


class _RowWorker:
    """Holds a reranker for `Dataset.map_batches`."""

    def __init__(self, model: Model, *, names: tuple[str, str, str], options: Mapping[str, Any]) -> None:
        self._names = names
        self._options = options
        self._reranker = model.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        query, documents, ranking = self._names
        found = self._reranker.rerank_many(
            table[query].to_pylist(), [row or [] for row in table[documents].to_pylist()], **self._options
        )  # fmt: skip
        rows = [[ranked.to_dict() for ranked in one] for one in found]
        return table.append_column(ranking, pa.array(rows, pa.list_(_ranked_type())))


def _ranked_type() -> pa.DataType:
    """Arrow's type of `RankedDocument.to_dict`: the same for all blocks, also where a field is null throughout."""
    import pyarrow as pa

    return pa.struct([
        ("rank", pa.int64()), ("index", pa.int64()), ("docid", pa.string()), ("score", pa.float64()),
        ("grade", pa.int64()), ("grade_name", pa.string()), ("probabilities", pa.list_(pa.float64())),
        ("novelty", pa.float64()), ("truncated", pa.bool_()), ("query_truncated", pa.bool_()), ("judged", pa.bool_()),
        ("reason", pa.string()), ("span", pa.list_(pa.int64())), ("fused", pa.float64()),
        ("exit_layer", pa.int64()),
    ])  # fmt: skip
