"""The decisive level: LoRA fine-tuning of the last layers, few arms, each training kept and resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from darl_rerank.files import atomic_write
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.training.data.examples import query_examples
from darl_rerank.training.loop.probe import fit_probe
from darl_rerank.training.model.grade_model import GradeModel, save_weights
from darl_rerank.training.model.interpolate import average, interpolated
from darl_rerank.training.model.predict import predict_logits
from darl_rerank.training.stages.finetune import finetune
from darl_rerank.training.stages.merge import GradedSet, alpha_curve

from .chosen import Seed, chosen_rows, probe_set
from .collections_by_role import Collections, Rows
from .heads import MEASURED_ROLES
from .measured import Run, Tests, measure_run, read_run
from .settings import Study, digest
from .states import BaseStates, CachedCheckpoint, last_layers

Logits = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Training:
    """One fine-tuning.

    Attributes:
        loss: a name of `arms.LOSSES`.
        strategy: which pairs of the pool are labelled.
        probe: whether the head is probed on the ID training pairs first (LPFT), or starts from the grade words.
        repeat: which of several trainings on the same labels, for a soup.
    """

    loss: str
    strategy: str
    probe: bool
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class Arm:
    """What is measured of one or several trainings.

    Attributes:
        name: in tables.
        trainings: more than one make a soup: the mean of their weights.
        interpolate: choose α on the development pairs; else the fine-tuned weights are taken as they are.
    """

    name: str
    trainings: tuple[Training, ...]
    interpolate: bool = False


PLAIN = Training("ce", "random", probe=False)
LPFT = Training("ce", "random", probe=True)
ALL_THREE = Training("occ", "dasa", probe=True)
# Order is that of the queue: claim (d) and (a) are decided first, what shares a training comes right after it.
ARMS = (
    Arm("plain", (PLAIN,)),
    Arm("all three", (ALL_THREE,), interpolate=True),
    Arm("all three, not interpolated", (ALL_THREE,)),
    Arm("OCC", (Training("occ", "random", probe=False),)),
    Arm("LPFT + interpolation", (LPFT,), interpolate=True),
    Arm("LPFT", (LPFT,)),
    Arm("DASA", (Training("ce", "dasa", probe=False),)),
    # WiSE-FT as its authors have it: from the zero-shot model, without a probe.
    Arm("interpolation without LP", (PLAIN,), interpolate=True),
)
# Costs two more trainings, so it comes last and for the first seed only.
SOUP = Arm("LPFT + interpolation + soup", (LPFT, replace(LPFT, repeat=1), replace(LPFT, repeat=2)), interpolate=True)


def queue(study: Study) -> list[tuple[Arm, int, int]]:
    """Arms with budget and seed in the order in which they are run; the first seed's arms are the decisive ones."""
    order = [(arm, budget, seed) for budget in study.budgets for seed in range(study.seeds) for arm in ARMS]
    first = sum(1 for _, budget, _ in order if budget == study.budgets[0])
    return [*order[:first], (SOUP, study.budgets[0], 0), *order[first:]]


class Tuner:
    """Runs arms of one study; everything finished is found again in `folder`."""

    def __init__(
        self,
        study: Study,
        data: Collections,
        tests: Tests,
        states: BaseStates,
        checkpoint: Checkpoint,
        folder: Path,
        seed_of: Callable[[int], Seed],
    ) -> None:
        self.study, self.data, self.tests, self.states = study, data, tests, states
        self.checkpoint, self.folder, self.seed_of = checkpoint, folder, seed_of
        # Asked for by every arm, each time a result file is written.
        self._chosen = lru_cache(maxsize=None)(self._choose)

    def run(self, arm: Arm, budget: int, number: int, *, only_kept: bool = False) -> Run | None:
        """Measure one arm with one seed; with `only_kept` None instead of work."""
        jobs = [self._job(training, budget, number) for training in arm.trainings]
        facts = {"arm": arm.name, "budget": budget, "seed": number, "level": "fine-tuned"}
        place = self.folder / "arms" / digest([
            facts, [job["name"] for job in jobs], arm.interpolate, self.study.alphas, self.study.resamples
        ])  # fmt: skip
        found = read_run(place)
        if found is not None or only_kept:
            return found
        states = [self._trained(job) for job in jobs]
        first, model = self._start(jobs[0], len(jobs))
        last = states[0] if len(states) == 1 else average(states)
        where = self.folder / "trainings" / jobs[0]["name"] if len(jobs) == 1 else place
        predict = _Predictor(model, first, last, self.states, self.data, where)
        alpha, curve = 1.0, None
        if arm.interpolate:
            curve = alpha_curve(
                predict.dev,
                {role: self._graded(role) for role in ("home_dev", "away_dev")},
                self.checkpoint.scale.gains,
                alphas=self.study.alphas,
            ).to_dict()
            alpha = curve["chosen"]
        logits = {role: predict(alpha, role) for role in MEASURED_ROLES}
        facts |= {
            "alpha": alpha, "curve": curve, "selection": jobs[0]["selection"], "pairs": len(jobs[0]["rows"]),
            "training": [self._outcome(job) for job in jobs],
        }  # fmt: skip
        return measure_run(
            place, logits, self.data, self.tests, self.checkpoint.scale.gains, facts, self.study.resamples
        )

    def _choose(self, strategy: str, budget: int, number: int) -> tuple[Rows, dict[str, Any]]:
        return chosen_rows(self.seed_of(number), self.study, strategy, budget, self.data.roles["home"])

    def _job(self, training: Training, budget: int, number: int) -> dict[str, Any]:
        seed = self.seed_of(number)
        chosen, account = self._chosen(training.strategy, budget, number)
        rows = np.concatenate([seed.sets.train, chosen])
        settings = replace(self.study.finetune, loss=training.loss, seed=100 * number + training.repeat)
        name = digest([
            asdict(training), asdict(settings), asdict(self.study.trainable), digest(rows.tolist()), self.data.digest,
            self.checkpoint.fingerprint,
        ])  # fmt: skip
        return {
            "training": training, "seed": seed, "rows": rows, "settings": settings, "name": name, "selection": account
        }  # fmt: skip

    def _begun(self, job: Mapping[str, Any]) -> Checkpoint:
        """What the fine-tuning starts from."""
        if not job["training"].probe:
            return self.checkpoint
        outcome = fit_probe(
            self.checkpoint.head,
            *probe_set(self.data, self.states, job["seed"].sets.train),
            probe_set(self.data, self.states, self.data.roles["home_dev"]),
            self.checkpoint.scale.gains, loss=job["training"].loss, terms=job["settings"].occ,
            seed=job["seed"].number, progress=False,
        )  # fmt: skip
        return self.checkpoint.replace(head=outcome.head)

    def _start(self, job: Mapping[str, Any], count: int = 1) -> tuple[dict[str, Tensor], GradeModel]:
        trainable = self.study.trainable
        if count > 1:
            trainable = replace(trainable, rank=trainable.rank * count, alpha=trainable.alpha * count)
        model = last_layers(self._begun(job), trainable, self.states.table, seed=job["settings"].seed)
        return model.trainable_state(), model

    def _trained(self, job: Mapping[str, Any]) -> dict[str, Tensor]:
        folder = self.folder / "trainings" / job["name"]
        path = folder / "trained.safetensors"
        if not path.is_file():
            _, model = self._start(job)
            examples = query_examples(self.data.of(job["rows"]), self.data.targets.shape[1])
            stand_in: Any = CachedCheckpoint(self.checkpoint.scale, self.states.encoder)
            outcome = finetune(model, stand_in, examples, job["settings"], folder)
            with atomic_write(folder / "outcome.json") as stream:
                json.dump(asdict(outcome), stream)
            save_weights(path, model.trainable_state())
            for state in folder.glob("checkpoint-*"):
                shutil.rmtree(state)
        trained: dict[str, Tensor] = load_file(path)
        return trained

    def _outcome(self, job: Mapping[str, Any]) -> Any:
        path = self.folder / "trainings" / job["name"] / "outcome.json"
        return json.loads(path.read_text("utf-8"))

    def _graded(self, role: str) -> GradedSet:
        rows = self.data.roles[role]
        return GradedSet(self.data.labels[rows], self.data.queries[rows])


class _Predictor:
    """Logits of a role at an α, each kept in `folder`: a kill costs one of them."""

    def __init__(
        self,
        model: GradeModel,
        first: Mapping[str, Tensor],
        last: dict[str, Tensor],
        states: BaseStates,
        data: Collections,
        folder: Path,
    ) -> None:
        self.model, self.first, self.last = model, first, last
        self.states, self.data, self.folder = states, data, folder
        self.loaded: float | None = None

    def __call__(self, alpha: float, role: str) -> NDArray[np.float32]:
        path = self.folder / f"logits-{alpha:g}-{role}.npy"
        if path.is_file():
            kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
            return kept
        if self.loaded != alpha:
            # Where the start has an adapter of its own, only the end can be asked for.
            self.model.load_trainable(self.last if alpha == 1 else interpolated(self.first, self.last, alpha))
            self.loaded = alpha
        encoder: Any = self.states.encoder
        pairs = self.data.of(self.data.roles[role])
        logits = predict_logits(self.model, encoder, pairs, description=f"α = {alpha:g}, {role}")
        with atomic_write(path, "wb") as stream:
            np.save(stream, logits)
        return logits

    def dev(self, alpha: float) -> Logits:
        return {role: self(alpha, role) for role in ("home_dev", "away_dev")}


def by_arm(runs: Sequence[Run]) -> dict[tuple[str, int], dict[int, Run]]:
    """Runs by (arm, budget) and seed."""
    found: dict[tuple[str, int], dict[int, Run]] = {}
    for run in runs:
        found.setdefault((run.facts["arm"], run.facts["budget"]), {})[run.facts["seed"]] = run
    return found
