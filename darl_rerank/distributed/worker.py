"""A worker: it holds the model, reads its part of the run, judges it and writes what came of it."""

from __future__ import annotations

import io
import json
from typing import Any

from ..errors import DarlRerankError, InputError
from ..offline import Written, judged, prepare, wanted_documents
from ..trec.lines import Faults, decoded_line
from ..trec.runs import Run, parse_run
from ..trec.topics import read_topics
from .plan import Task
from .storage import Parts, local_copy, read_range


class PartWorker:
    """Judges parts, for `Dataset.map_batches`.

    A fault of the input is a row that says so, not an exception: Ray would restart the actor and try again.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts = Parts(task.parts)
        self._failure = ""
        try:
            self._reranker = task.model.load()
            if task.choices.effort.get("budget_ms") is not None:
                self._reranker.warm_up()
            self._lookup = task.open_documents()
            with local_copy(task.topics) as path:
                self._topics = read_topics(path)
        except DarlRerankError as error:
            self._failure = to_json(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of part, start, end and documents in; part, documents and error ("" for none) out."""
        rows = zip(batch["part"].tolist(), batch["start"].tolist(), batch["end"].tolist(), strict=True)
        errors = [self._failure or self._finish(*row) for row in rows]
        return {"part": batch["part"], "documents": batch["documents"], "error": errors}

    def _finish(self, number: int, start: int, end: int) -> str:
        try:
            # Another worker may have finished it before it died.
            if not self._parts.has(number):
                self._parts.write(number, self._judge(start, end))
        except DarlRerankError as error:
            return to_json(error)
        return ""

    def _judge(self, start: int, end: int) -> dict[str, Any]:
        task, choices = self._task, self._task.choices
        run = self._read(start, end)
        depth = task.depth or max(map(len, run.values()))
        job = prepare(
            run, self._topics, self._lookup(wanted_documents(run, depth)), depth=depth, missing=task.missing
        )  # fmt: skip
        lines, details = io.StringIO(), io.StringIO()
        not_judged = kept = 0
        warnings: list[str] = []
        for qid, ranking in judged(self._reranker, job, choices):
            query = Written.of(job, qid, [ranked.to_dict() for ranked in ranking], choices)
            lines.write(query.run_lines(qid, choices.tag))
            if task.details:
                details.write(query.details(qid))
            not_judged += query.not_judged
            kept += len(ranking)
            warnings += ranking.warnings[:1]
        documents = sum(map(len, job.candidates.values()))
        return {
            "run": lines.getvalue(),
            "details": details.getvalue(),
            "documents": documents,
            "cut": documents - kept if choices.given else 0,
            "not_judged": not_judged,
            "warned": len(warnings),
            "warning": warnings[0] if warnings else "",
            "skipped": job.skipped,
        }

    def _read(self, start: int, end: int) -> Run:
        path = self._task.run
        faults = Faults(path)
        # The first line of a file may begin with a byte order mark.
        lines = enumerate(read_range(path, start, end).split(b"\n"), 1 if start == 0 else 2)
        decoded = ((number, decoded_line(raw, number)) for number, raw in lines)
        run = parse_run(((number, line) for number, line in decoded if line.strip()), faults)
        if len(faults):
            raise InputError("has changed while it was read", path=path)
        return run


def to_json(error: DarlRerankError) -> str:
    """An error as a row carries it."""
    return json.dumps([error.exit_code, str(error)])


def from_json(text: str) -> DarlRerankError:
    """The inverse of `to_json`."""
    code, message = json.loads(text)
    if code == InputError.exit_code:
        return InputError(message)
    error = DarlRerankError(message)
    error.exit_code = code
    return error
