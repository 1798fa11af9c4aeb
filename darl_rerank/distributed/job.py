"""A run reranked on a cluster with the journal's promise: killed at any moment, the same call ends with the same bytes.

The driver only says who does what. A worker plans the job; workers read run, topics and texts from a disk or a store
that all nodes see, and leave finished parts there; the driver then joins the parts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import check_count
from ..files import check_output_file
from ..locks import WriterLock
from ..model.checkpoint import Checkpoint
from ..model.shipped import DEFAULT
from ..offline import Choices, Missing, RunReport
from ..progress import Progress, progress_bar
from .cluster import check_nodes, connected, gpus_per_worker, nodes_for
from .model import Model
from .plan import Lookup, Plan, Task, plan
from .storage import Parts, exists, is_url, whole_output
from .worker import PartWorker, from_json

log = logging.getLogger(__name__)

# Tasks that Ray is given: each costs the driver some kilobytes and milliseconds.
_TASKS = 4000


@dataclass(frozen=True, slots=True)
class Workers:
    """What runs the job.

    Attributes:
        count: how many workers; as many as the cluster has room for if None.
        cpus: of each; its threads.
        gpus: of each; one if the cluster has any and the model may use them, else none, if None.
    """

    count: int | None = None
    cpus: float = 1.0
    gpus: float | None = None


def rerank_on_ray(
    run: str | Path,
    topics: str | Path,
    output: str | Path,
    model: str | Path | None = None,
    *,
    open_documents: Callable[[], Lookup],
    documents: str | Path,
    address: str = "auto",
    workers: Workers | None = None,
    depth: int | None = 100,
    missing: Missing = "error",
    choices: Choices | None = None,
    details: str | Path | None = None,
    engine: dict[str, Any] | None = None,
    part_documents: int = 1000,
    restart: bool = False,
    progress: Progress = True,
) -> RunReport:
    """Rerank a run on a Ray cluster into the same bytes that `darl_rerank.offline.rerank_run` writes.

    They are the same where the workers have the processor, the number of threads and the engine that the one machine
    has. Every path may be a URL of fsspec; one of a disk must lead to the same files on every node. While the job
    lasts, the folder `<output>.parts` holds what is finished.

    Args:
        run: a TREC run, uncompressed, the lines of a query together.
        topics: as `darl_rerank.trec.topics.read_topics` reads them.
        output: the run to write.
        model: as `Reranker.from_pretrained`; of a folder, the driver reads the fingerprint, too.
        open_documents: called once in each worker (it has to be a function that can be imported there, or a
            `functools.partial` of one); gives a function from wanted ids to the documents that are there.
        documents: where the texts lie. If they change, it is another job.
        address: of the cluster, see `darl_rerank.distributed.cluster.connected`.
        workers: how many, and what each takes; all the cluster has if None.
        depth: documents of each query to rerank, the rest is left out; None for all.
        missing: what to do with a document that has no text: "error", or "skip" it.
        choices: what to write of each query.
        details: a JSONL to write beside the run.
        engine: further arguments of `Reranker.from_pretrained`.
        part_documents: how many documents are judged before they are written; what a worker that dies has judged for
            nothing.
        restart: begin anew even if parts are there.
        progress: see `darl_rerank.progress`.

    Raises:
        InputError: no cluster there, an input that a node does not see, another version or checkpoint on a node,
            faulty inputs, or the parts of another job. No output is touched then.
        DarlRerankError: the cluster failed, or an output can't be written.
        MissingDependencyError: Ray is not installed.
    """
    if depth is not None:
        check_count("depth", depth)
    places = {"run": run, "topics": topics, "documents": documents, "output": output}
    paths = {name: _absolute(path) for name, path in places.items()}
    outputs = [paths["output"], *([] if details is None else [_absolute(details)])]
    for path in outputs:
        if not is_url(path):
            check_output_file(path)
    checkpoint = Checkpoint.load(DEFAULT if model is None else model)
    name = None if model is None else _absolute(model) if exists(str(model)) else str(model)
    task = Task(
        model=Model(name, engine or {}, checkpoint.fingerprint),
        run=paths["run"],
        topics=paths["topics"],
        open_documents=open_documents,
        documents=paths["documents"],
        depth=depth,
        missing=missing,
        choices=choices or Choices(),
        details=details is not None,
        parts=paths["output"] + ".parts",
        part_documents=part_documents,
    )
    with _held(task.parts), connected(address):
        parts = Parts(task.parts)
        if restart:
            parts.remove()
        new = parts.begin()
        try:
            inputs = [paths["run"], paths["topics"], paths["documents"], task.parts]
            if name is not None and exists(name):
                inputs.append(name)
            size = _sized(workers or Workers(), task.model)
            nodes = nodes_for(size.cpus, size.gpus or 0)
            log.info(f"waiting for the nodes ({len(nodes)}): version, files and checkpoint are looked at on each")
            check_nodes(nodes, [path for path in inputs if not is_url(path)], task.model)
            size = replace(size, count=size.count or sum(node.workers for node in nodes))
            log.info("waiting for a worker to load the model and read the run")
            planned = _planned(task, size)
            task = replace(task, model=replace(task.model, fingerprint=planned.fingerprint))
            done = parts.go_on(_identity(task, planned))
            _judge(task, planned, done, size, progress)
        except BaseException:
            if new and not parts.finished():
                parts.remove()
            raise
        report = _join(parts, planned, outputs)
        parts.remove()
    return report


def _absolute(path: str | Path) -> str:
    return str(path) if is_url(str(path)) else str(Path(path).absolute())


@contextlib.contextmanager
def _held(folder: str) -> Iterator[None]:
    """Nobody else works on this job, as far as a disk can say."""
    if is_url(folder):
        yield
        return
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(Path(folder), "another process is working on this job")
    try:
        yield
    finally:
        lock.remove()


def _sized(workers: Workers, model: Model) -> Workers:
    """The workers with their number of GPUs."""
    gpus = gpus_per_worker(model.options.get("device")) if workers.gpus is None else workers.gpus
    return replace(workers, gpus=gpus)


def _planned(task: Task, workers: Workers) -> Plan:
    """The plan, made by a worker."""
    import ray

    remote = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus)(plan)
    planned: Plan = ray.get(remote.remote(task))
    return planned


def _identity(task: Task, planned: Plan) -> dict[str, Any]:
    return {
        "model": planned.fingerprint,
        **task.choices.identity,
        **planned.identity,
        "depth": task.depth,
        "missing": task.missing,
        "details": task.details,
    }


def _judge(task: Task, planned: Plan, done: set[int], workers: Workers, progress: Progress) -> None:
    """Have every part judged that is not done.

    Raises:
        DarlRerankError: the first that a worker reports.
    """
    left = [number for number in range(len(planned.parts)) if number not in done]
    total = int(planned.parts[:, 2].sum())
    finished = total - int(planned.parts[left, 2].sum())
    if left:
        log.info(f"waiting for the workers ({min(workers.count or 1, len(left))}) to load the model")
    with progress_bar("reranking", total, unit="doc", done=finished, progress=progress) as bar:
        if not left:
            return
        for row in _rows(task, planned.parts, np.array(left), workers):
            if row["error"]:
                raise from_json(row["error"])
            bar.update(row["documents"])


def _rows(task: Task, parts: NDArray[np.int64], left: NDArray[np.intp], workers: Workers) -> Iterator[dict[str, Any]]:
    import ray.data

    # Its own bars and its news of every execution would stand between ours.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [
        {"part": number, "start": start, "end": end, "documents": documents}
        for number, (start, end, documents) in zip(left.tolist(), parts[left].tolist(), strict=True)
    ]
    rows: Iterator[dict[str, Any]] = (
        ray.data.from_items(items, override_num_blocks=min(len(items), _TASKS))
        .map_batches(
            PartWorker,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers.count or 1, len(items))),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
        .iter_rows()
    )
    return rows


def _join(parts: Parts, planned: Plan, outputs: list[str]) -> RunReport:
    """Write the outputs, run and then details, from the parts in order, one at a time."""
    counts = dict.fromkeys(("not_judged", "cut", "warned", "documents"), 0)
    warning = ""
    skipped: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(whole_output(path)) for path in outputs]
        for number in range(len(planned.parts)):
            part = parts.read(number)
            for stream, name in zip(streams, ("run", "details"), strict=False):
                stream.write(part[name])
            for name in counts:
                counts[name] += part[name]
            warning = warning or part["warning"]
            skipped += [(qid, docid) for qid, docid in part["skipped"]]
    return RunReport(
        **counts, warning=warning, queries=planned.queries, skipped=skipped, unused_topics=planned.unused_topics
    )
