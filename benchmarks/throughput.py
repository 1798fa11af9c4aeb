"""Speed on this CPU, side by side with what people would use instead: pairs a second, latency, memory, scaling.

    python benchmarks/throughput.py [--collection FOLDER] [--model FOLDER] [--parts rows,latency] [--largest 100000]

Parts can be run apart; each replaces its own entry in results/throughput.json. benchmarks/performance_tables.py makes
the tables of docs/performance.md from it.

    rows      every contender on the same pairs in turn, several times; the ceiling of the products before and after
    latency   one query with 10, 100 and 1,000 documents
    start     cold start and peak memory, each in a fresh process
    scaling   100 pairs to --largest, each in a fresh process
    length    cost against the length of documents
    threads   one core and two, each in a fresh process
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from provenance import RESULTS, provenance, write_result
from speed import contenders as c
from speed.ceiling import ceilings, higher, linear_parameters, linear_shapes
from speed.pairs import Pairs, cut, grouped, read_pairs
from speed.worker import in_fresh_process

from darl_rerank import Checkpoint, Reranker
from darl_rerank.cache import cache_folder
from darl_rerank.engines.base import Engine, grade_groups
from darl_rerank.engines.batching import plan
from darl_rerank.engines.loading import load_engine
from darl_rerank.errors import DarlRerankError
from darl_rerank.model.prompt import PromptGroup
from darl_rerank.model.shipped import DEFAULT

DOCUMENTS_OF_LATENCY = ((10, 15), (100, 5), (1000, 2))  # documents, times
LENGTHS = (32, 64, 128, 256, 448)
DOCUMENTS_OF_LENGTH = 24


@dataclass(frozen=True, slots=True)
class Setting:
    """What a part is given."""

    checkpoint: Checkpoint
    folder: Path
    pairs: Pairs
    more: Callable[[int], Pairs]
    repeats: int
    largest: int
    cache: Path
    exported: dict[str, Path]
    only: tuple[str, ...] = ()
    clock: str = "wall"

    def now(self) -> float:
        """Seconds of the clock that rows are measured by."""
        return time.perf_counter() if self.clock == "wall" else time.process_time()

    def chosen(self, contenders: Sequence[c.Contender]) -> list[c.Contender]:
        """Those whose names `only` has parts of; torch in float32 always, since logits are compared with its."""
        kept = (*self.only, "torch, float32")
        return [one for one in contenders if not self.only or any(part in one.name for part in kept)]

    def exports(self) -> tuple[dict[str, Path], dict[str, str]]:
        """Folder of each precision that passes its own checks, and why the others don't."""
        folders, faults = dict(self.exported), {}
        wanted = {p for p in ("float32", "int8") if not self.only or any(p in part for part in self.only)}
        for precision in sorted(wanted - folders.keys()):
            try:
                folders[precision] = c.exported_folder(self.checkpoint, precision, self.cache)
            except DarlRerankError as error:
                faults[precision] = str(error)
        return folders, faults

    def classifier(self) -> Path:
        return c.write_classifier(self.checkpoint, self.cache / f"classifier-{self.checkpoint.fingerprint[:12]}")

    def engines(self) -> dict[str, Engine]:
        """The two that a user without a GPU would choose between."""
        engines = {"torch, bfloat16": load_engine(self.checkpoint, "torch", device="cpu", precision="bfloat16")}
        folder = self.exports()[0].get("int8")
        if folder is not None:
            engines["ONNX Runtime, int8"] = load_engine(Checkpoint.load(folder), "onnx", device="cpu", precision=None)
        return engines


def tokens_of(checkpoint: Checkpoint, pairs: Pairs, batch_tokens: int = 1024) -> dict[str, float]:
    """Tokens a pair: whole prompts; those left to run where a prefix is run once; and these padded to micro-batches."""
    encoder = checkpoint.encoder()
    groups = [encoder.encode(query, documents) for query, documents in grouped(pairs)]
    whole = sum(len(g.prefix) + len(s) for g in groups for s in g.suffixes)
    run = padded = prefixes = 0
    seen: set[tuple[int, ...]] = set()
    for batch in plan(groups, batch_tokens):
        if batch.prefix and batch.prefix not in seen:
            seen.add(batch.prefix)
            prefixes += len(batch.prefix)
        run += sum(map(len, batch.sequences))
        padded += len(batch.sequences) * max(map(len, batch.sequences))
    return {
        "whole": whole / len(pairs),
        "run": (run + prefixes) / len(pairs),
        "run_padded": (padded + prefixes) / len(pairs),
    }


def rows(setting: Setting) -> dict[str, Any]:
    checkpoint, classifier = setting.checkpoint, setting.classifier()
    exports, faults = setting.exports()
    wanted = [
        c.of_cross_encoder(classifier, checkpoint, "float32"),
        c.of_cross_encoder(classifier, checkpoint, "bfloat16"),
        c.of_cross_encoder(classifier, checkpoint, "float32", backend="onnx"),
        c.of_cross_encoder(classifier, checkpoint, "float32", backend="openvino"),
        c.of_transformers(classifier, checkpoint, "float32"),
        c.of_transformers(classifier, checkpoint, "bfloat16"),
        c.of_torch(checkpoint, "float32"),
        c.of_torch(checkpoint, "bfloat16"),
        *(c.of_onnx(folder, precision) for precision, folder in exports.items()),
    ]
    if checkpoint.exits is not None and "int8" in exports:
        wanted.append(c.of_onnx(exports["int8"], "int8", exit="auto"))
    shapes, parameters = linear_shapes(checkpoint), linear_parameters(checkpoint)
    tokens = tokens_of(checkpoint, setting.pairs)
    ceiling = ceilings(shapes, clock=setting.now)
    ready = []
    skipped = {f"darl-rerank, ONNX Runtime, {precision}": fault for precision, fault in faults.items()}
    for contender, run in c.loaded(setting.chosen(wanted)):
        if isinstance(run, str):
            skipped[contender.name] = run
        else:
            ready.append((contender, run, [], []))
    for contender, run, _, _ in ready:
        click.echo(f"warming up {contender.name}", err=True)
        run(setting.pairs[: c.BATCH])
    for _ in range(setting.repeats):
        for _, run, seconds, logits in ready:
            start = setting.now()
            found = run(setting.pairs)
            seconds.append(setting.now() - start)
            logits[:] = [found]
    ceiling = higher(ceiling, ceilings(shapes, clock=setting.now))
    reference: NDArray[np.float32] = next(found[0] for of, _, _, found in ready if of.name.endswith("torch, float32"))
    table = []
    for contender, _, seconds, logits in ready:
        rate = len(setting.pairs) / statistics.median(seconds)
        table.append({
            "name": contender.name, "number_format": contender.number_format, "seconds": seconds,
            "shares_prefix": contender.shares_prefix, "pairs_per_second": rate,
            "largest_logit_difference": float(np.abs(logits[0] - reference).max()),
        })  # fmt: skip
        click.echo(f"{contender.name:60} {rate:6.2f} pairs/s", err=True)
    return {
        "pairs": len(setting.pairs), "tokens_per_pair": tokens, "linear_parameters": parameters, "ceiling": ceiling,
        "rows": with_shares(table, tokens, parameters, ceiling), "skipped": skipped,
        "load_average": os.getloadavg()[0], "clock": setting.clock,
    }  # fmt: skip


def with_shares(
    table: Sequence[dict[str, Any]], tokens: dict[str, float], parameters: int, ceiling: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """The rows with their shares of the ceiling, by the tokens that they have to run and by whole pairs."""
    found = []
    for row in table:
        most = ceiling.get(row["number_format"], {}).get("best")
        shares = row.get("shares_prefix", row["name"].startswith("darl-rerank"))
        used = {"tokens_run": tokens["run" if shares else "whole"], "whole_pairs": tokens["whole"]}
        found.append(row | {
            f"share_of_ceiling_{kind}": row["pairs_per_second"] * 2 * parameters * count / most if most else None
            for kind, count in used.items()
        })  # fmt: skip
    return found


def ceiling_again(setting: Setting, rows_before: dict[str, Any]) -> dict[str, Any]:
    """The rows measured before, against a ceiling measured now by the same clock."""
    ceiling = ceilings(linear_shapes(setting.checkpoint), clock=setting.now)
    before = rows_before["rows_provenance"] if "rows_provenance" in rows_before else rows_before["provenance"]
    table = with_shares(rows_before["rows"], rows_before["tokens_per_pair"], rows_before["linear_parameters"], ceiling)
    return {**rows_before, "rows_provenance": before, "ceiling": ceiling, "rows": table}


def latency(setting: Setting) -> dict[str, Any]:
    checkpoint = setting.checkpoint
    query = setting.pairs[0][0]
    # One query with as many documents as the largest case needs; those of other queries serve as well.
    documents = list(dict.fromkeys(d for _, d in setting.more(DOCUMENTS_OF_LATENCY[-1][0])))
    table = []
    for name, engine in setting.engines().items():
        reranker = Reranker(checkpoint, engine)
        reranker.rerank(query, documents[:10])
        for count, times in DOCUMENTS_OF_LATENCY:
            part = documents[:count]
            seconds = []
            for _ in range(times):
                start = time.perf_counter()
                reranker.rerank(query, part)
                seconds.append(time.perf_counter() - start)
            p50, p95 = (float(np.percentile(seconds, p)) for p in (50, 95))
            table.append({"engine": name, "documents": len(part), "seconds": seconds, "p50": p50, "p95": p95})
            click.echo(f"{name:22} {len(part):5} documents: p50 {p50:.2f} s", err=True)
    return {"rows": table}


def tasks(setting: Setting) -> dict[str, dict[str, Any]]:
    """What a fresh process is told, for each engine."""
    own = {"queries": grouped(setting.pairs), "folder": str(setting.folder)}
    found = {f"torch, {p}": {**own, "kind": "torch", "precision": p} for p in ("float32", "bfloat16")}
    for precision, folder in setting.exports()[0].items():
        task = {**own, "kind": "onnx", "precision": precision, "folder": str(folder)}
        found[f"ONNX Runtime, {precision}"] = task
    return found


def start(setting: Setting) -> dict[str, Any]:
    wanted = tasks(setting)
    other = {"kind": "cross-encoder", "folder": str(setting.classifier()), "checkpoint": str(setting.folder)}
    wanted["sentence-transformers CrossEncoder, float32"] = {
        **other, "precision": "float32", "queries": grouped(setting.pairs),
    }  # fmt: skip
    table = []
    for name, task in wanted.items():
        found = in_fresh_process({**task, "pairs": min(50, len(setting.pairs))})
        table.append({"engine": name, **found})
        click.echo(f"{name:45} first result after {found['cold_start_seconds']:.1f} s", err=True)
    return {"rows": table}


def scaling(setting: Setting) -> dict[str, Any]:
    chosen = tasks(setting)
    table = []
    for name in ("torch, bfloat16", "ONNX Runtime, int8"):
        if name not in chosen or (setting.only and not any(part in name for part in setting.only)):
            continue
        size = 100
        # The faster engine alone goes all the way, for the time's sake.
        fastest = name.startswith("ONNX") or "ONNX Runtime, int8" not in chosen
        largest = setting.largest if fastest else min(setting.largest, 1000)
        while size <= largest:
            found = in_fresh_process({**chosen[name], "pairs": size})
            rate = found["pairs"] / found["seconds"]
            table.append({"engine": name, **found, "pairs_per_second": rate})
            click.echo(f"{name:22} {size:7} pairs: {rate:.1f} a second, peak {found['peak_mib']} MiB", err=True)
            size *= 10
    return {"rows": table}


def length(setting: Setting) -> dict[str, Any]:
    checkpoint = setting.checkpoint
    encoder = checkpoint.encoder()
    group = encoder.encode(setting.pairs[0][0], [d for _, d in setting.pairs])
    ids = [token for suffix in group.suffixes for token in suffix]
    engines = setting.engines()
    table: list[dict[str, Any]] = []
    for tokens in LENGTHS:
        # Cut out of all documents' tokens one after the other, a different piece for each.
        step = max(1, (len(ids) - tokens) // DOCUMENTS_OF_LENGTH)
        suffixes = tuple(tuple(ids[i * step : i * step + tokens]) for i in range(DOCUMENTS_OF_LENGTH))
        made = PromptGroup(group.prefix, suffixes, tuple(range(len(suffixes))), (False,) * len(suffixes))
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(setting.repeats):
            for name, engine in engines.items():
                begun = time.perf_counter()
                grade_groups(engine, [made], grades=len(checkpoint.scale))
                seconds[name].append(time.perf_counter() - begun)
        for name, times in seconds.items():
            rate = DOCUMENTS_OF_LENGTH / statistics.median(times)
            table.append({"engine": name, "document_tokens": tokens, "seconds": times, "pairs_per_second": rate})
            click.echo(f"{name:22} {tokens:4} tokens: {rate:.1f} pairs/s", err=True)
    return {"prefix_tokens": len(group.prefix), "documents": DOCUMENTS_OF_LENGTH, "rows": table}


def threads(setting: Setting) -> dict[str, Any]:
    table = []
    for name, task in tasks(setting).items():
        if "float32" in name:
            continue
        for cores in sorted({1, len(os.sched_getaffinity(0))}):
            found = in_fresh_process({**task, "pairs": len(setting.pairs)}, threads=cores)
            rate = found["pairs"] / found["seconds"]
            table.append({"engine": name, "cores": cores, "pairs_per_second": rate, "seconds": found["seconds"]})
            click.echo(f"{name:22} {cores} cores: {rate:.1f} pairs/s", err=True)
    return {"rows": table}


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "rows": rows, "latency": latency, "start": start, "scaling": scaling, "length": length, "threads": threads,
}  # fmt: skip


def merged(name: str, part: str, values: dict[str, Any]) -> dict[str, Any]:
    """The parts of results/NAME.json, with `part` replaced."""
    path = RESULTS / f"{name}.json"
    parts = json.loads(path.read_text("utf-8")).get("parts", {}) if path.is_file() else {}
    return {**parts, part: {"provenance": provenance(), **values}}


def chosen_parts(text: str) -> Sequence[str]:
    names = list(PARTS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise click.UsageError(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    return names


@click.command()
@click.option("--collection", type=click.Path(path_type=Path), help="with topics.tsv, corpus.jsonl.gz, runs/")
@click.option("--model", type=click.Path(path_type=Path), help="a checkpoint folder; the default one if not given")
@click.option("--parts", default="all", show_default=True, help="comma-separated")
@click.option("--pairs", "count", default=100, show_default=True)
@click.option("--per-query", default=50, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--largest", default=10_000, show_default=True, help="pairs of the largest run of `scaling`")
@click.option("--words", type=int, help="only so many words of each document, where whole ones would take hours")
@click.option("--exported", multiple=True, type=(str, click.Path(path_type=Path)), help="PRECISION FOLDER")
@click.option("--ceiling-again", "again", is_flag=True, help="only the ceiling of the rows that NAME has")
@click.option("--only", default="", help="comma-separated parts of names: which rows of `rows`; all if not given")
@click.option(
    "--clock",
    type=click.Choice(["wall", "processor"]),
    default="wall",
    show_default=True,
    help="of `rows`; with one thread (OMP_NUM_THREADS=1) a processor's clock is right on a shared machine too",
)
@click.option("--name", default="throughput", show_default=True, help="of the file in results/")
def main(
    collection: Path | None, model: Path | None, parts: str, count: int, per_query: int, repeats: int, largest: int,
    words: int | None, exported: tuple[tuple[str, Path], ...], again: bool, only: str, clock: str, name: str,
) -> None:  # fmt: skip
    """Measure and write results/throughput.json."""
    names = chosen_parts(parts)
    if clock == "processor" and os.environ.get("OMP_NUM_THREADS") != "1":
        raise click.UsageError("--clock processor counts every thread's waiting: set OMP_NUM_THREADS=1")
    checkpoint = Checkpoint.load(DEFAULT if model is None else model)
    assert checkpoint.folder is not None
    setting = Setting(
        checkpoint, Path(checkpoint.folder).resolve(), cut(read_pairs(collection, count, per_query), words),
        lambda most: cut(read_pairs(collection, most, 100), words), repeats, largest, cache_folder() / "throughput",
        {precision: folder.resolve() for precision, folder in exported},  # fresh processes run elsewhere
        tuple(part for part in only.split(",") if part), clock,
    )  # fmt: skip
    common = {
        "collection": "icecat" if collection is None else collection.name,
        "model": {"fingerprint": checkpoint.fingerprint, "trained": checkpoint.trained, **asdict(checkpoint.base)},
        "repeats": repeats,
        "per_query": per_query,
        "words": words,
        "seed": 0,
    }
    if again:
        before = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["parts"]["rows"]
        values = ceiling_again(setting, {**common, **before})
        del values["provenance"]
        click.echo(write_result(name, {"parts": merged(name, "rows", values)}).name, err=True)
        return
    for part in names:
        begun = time.monotonic()
        values = PARTS[part](setting)
        found = {**common, **values, "took_seconds": round(time.monotonic() - begun, 1)}
        path = write_result(name, {"parts": merged(name, part, found)})
        click.echo(f"{part}: {found['took_seconds']:.0f} s, in {path.name}", err=True)


if __name__ == "__main__":
    main()
