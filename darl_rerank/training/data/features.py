"""Novelty features and grade logits of many pairs, streamed to disk: a million pairs need no more memory than a few.

A folder of them holds

    features.npy     shape (n, F), float16 (unit-length blocks: rounding moves a cosine by less than 1e-3)
    logits.npy       shape (n, K), float32
    progress.json    which model and pairs they are of, and how many rows are done

Rows are written with plain file writes, not through a memory map, whose dirty pages would count as the process's
memory. A killed job goes on at the last finished block.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from darl_rerank.errors import DarlRerankError, InputError
from darl_rerank.files import atomic_write
from darl_rerank.progress import Progress, progress_bar
from darl_rerank.results import PairScores

_FEATURES = "features.npy"
_LOGITS = "logits.npy"
_PROGRESS = "progress.json"
# Pairs judged together: enough to fill micro-batches of like lengths, few enough to lose little in a kill.
BLOCK_PAIRS = 512


class HasTexts(Protocol):
    """A pair as `darl_rerank.trec.graded_pairs` gives it."""

    @property
    def query(self) -> str: ...

    @property
    def document(self) -> str: ...


class ScoresPairs(Protocol):
    """What judges pairs: `darl_rerank.Reranker`."""

    @property
    def fingerprint(self) -> str: ...

    def score_pairs(self, pairs: Sequence[tuple[str, Any]], *, features: bool = False) -> PairScores: ...


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """What a model sees in n pairs, in their order; the arrays may be memory maps.

    Attributes:
        features: novelty features, shape (n, F), float16; F is 0 without `with_features`.
        logits: grade logits before calibration, shape (n, K), float32.
    """

    features: NDArray[np.float16]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logits)


def extract_features(
    reranker: ScoresPairs,
    pairs: Iterable[HasTexts],
    folder: str | Path,
    *,
    with_features: bool = True,
    restart: bool = False,
    progress: Progress = True,
    description: str = "features",
) -> PairFeatures:
    """Features and logits of `pairs`, from `folder` as far as they are there, else computed and written to it.

    Pairs of one query that stand together share the run of its prompt's prefix, so keep queries together.

    Args:
        reranker: the model, usually that of `Checkpoint.from_base`: fine-tuned features mostly see the grade.
        pairs: iterated twice, first for a digest of the texts; a list, or an object whose `__iter__` reads a file.
        folder: made if it is not there.
        with_features: False for logits alone (a teacher's).
        restart: throw away what is there.
        progress: see `darl_rerank.progress`.
        description: what the progress bar calls the work.

    Raises:
        InputError: `folder` holds another model's or other pairs' features, an iterator was passed, or a pair is
            empty or too long.
        DarlRerankError: the folder can't be written (disk full).
    """
    if iter(pairs) is pairs:
        raise InputError("pairs are read twice: pass a list or an object that can be iterated anew, not an iterator")
    folder = Path(folder)
    if restart:
        clear_features(folder)
    total, digest = _digest(pairs)
    if not total:
        raise InputError("there are no pairs to compute features of")
    job = {"model": reranker.fingerprint, "pairs": total, "sha256": digest, "features": with_features}
    state = _State.open(folder, job)
    with progress_bar(description, total, unit="pair", done=state.done, progress=progress) as bar:
        for block in _blocks(islice(iter(pairs), state.done, None)):
            scores = reranker.score_pairs([(pair.query, pair.document) for pair in block], features=with_features)
            features = scores.features
            if features is None:
                if with_features:
                    raise InputError("the model's engine gives no novelty features; use one that does (torch)")
                features = np.zeros((len(block), 0), dtype=np.float32)
            state.append(features.astype(np.float16), scores.logits)
            bar.update(len(block))
    return open_features(folder)


def open_features(folder: str | Path) -> PairFeatures:
    """The finished features in `folder`, as read-only memory maps.

    Raises:
        InputError: there are none, or they are not finished.
    """
    folder = Path(folder)
    values = _read_progress(folder)
    if values is None or values["done"] < values["job"]["pairs"]:
        found = "none" if values is None else f"{values['done']} of {values['job']['pairs']} rows"
        raise InputError(f"expected finished features, found {found}", path=folder)
    return PairFeatures(_mapped(folder / _FEATURES), np.load(folder / _LOGITS, mmap_mode="r"))


def clear_features(folder: str | Path) -> None:
    """Delete the files of `extract_features`, and the folder if nothing else is in it."""
    folder = Path(folder)
    for name in (_PROGRESS, _FEATURES, _LOGITS):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@dataclass(slots=True)
class _State:
    """The files while they are written: rows first, then the progress that vouches for them."""

    folder: Path
    job: dict[str, Any]
    done: int

    @classmethod
    def open(cls, folder: Path, job: dict[str, Any]) -> _State:
        values = _read_progress(folder)
        if values is None:
            return cls(folder, job, 0)
        keys = [key for key in job if values["job"].get(key) != job[key]]
        if keys:
            what = {"model": "another model", "features": "other settings"}.get(keys[0], "other pairs")
            raise InputError(f"holds the features of {what}; choose another folder or ask to begin anew", path=folder)
        return cls(folder, job, int(values["done"]))

    def append(self, features: NDArray[np.float16], logits: NDArray[np.float32]) -> None:
        if not self.done:
            self._make_files(features.shape[1], logits.shape[1])
        try:
            for name, rows in ((_FEATURES, features), (_LOGITS, logits)):
                _write_rows(self.folder / name, rows, self.done)
        except OSError as error:
            raise DarlRerankError(
                f"{self.folder}: could not be written: {error.strerror}; {self.done} finished pairs are kept"
            ) from error
        self.done += len(logits)
        with atomic_write(self.folder / _PROGRESS) as stream:
            json.dump({"job": self.job, "done": self.done}, stream)

    def _make_files(self, feature_size: int, grades: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = int(self.job["pairs"])
        need = rows * (2 * feature_size + 4 * grades)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise DarlRerankError(
                f"{self.folder}: {rows} pairs' features take {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
            )
        shapes = {_FEATURES: ((rows, feature_size), "<f2"), _LOGITS: ((rows, grades), "<f4")}
        for name, (shape, dtype) in shapes.items():
            with (self.folder / name).open("wb") as stream:
                np.lib.format.write_array_header_1_0(
                    stream, {"descr": dtype, "fortran_order": False, "shape": shape}
                )  # fmt: skip
                # The rest is a hole until rows are written, so making the file costs nothing.
                stream.truncate(stream.tell() + int(np.prod(shape)) * int(dtype[-1]))


def _write_rows(path: Path, rows: NDArray[Any], start: int) -> None:
    with path.open("r+b") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        stream.seek(start * rows.shape[1] * rows.itemsize, os.SEEK_CUR)
        stream.write(np.ascontiguousarray(rows).tobytes())
        stream.flush()
        os.fsync(stream.fileno())


def _mapped(path: Path) -> NDArray[np.float16]:
    try:
        array: NDArray[np.float16] = np.load(path, mmap_mode="r")
    except ValueError:
        # An array without columns has no bytes, and nothing can't be mapped.
        array = np.load(path)
    return array


def _read_progress(folder: Path) -> dict[str, Any] | None:
    path = folder / _PROGRESS
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        values["job"]["pairs"], values["done"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("is not the progress of a feature extraction; delete the folder", path=path) from error
    return values


def _digest(pairs: Iterable[HasTexts]) -> tuple[int, str]:
    digest, count = hashlib.sha256(), 0
    for pair in pairs:
        count += 1
        for text in (pair.query, pair.document):
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return count, digest.hexdigest()


def _blocks(pairs: Iterator[HasTexts]) -> Iterator[list[HasTexts]]:
    while block := list(islice(pairs, BLOCK_PAIRS)):
        yield block
