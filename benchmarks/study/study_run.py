"""A study while it runs: its pairs, the base model's states, and the result files that grow as arms finish."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import page
from provenance import write_result
from tqdm import tqdm

from darl_rerank.cli.train import with_bm25_runs
from darl_rerank.training.model.initial import initial_checkpoint
from darl_rerank.training.recipe.settings import Recipe

from .chosen import Seed, pool_by_group, prepare_seed
from .claims import HEAD_CLAIMS, TUNED_CLAIMS, compare_all, judge
from .collections_by_role import load_collections
from .earlier import with_earlier
from .heads import HEAD_ARMS, ZERO_SHOT, run_head_arm
from .measured import Run, described, novelty_of_groups, tests_of
from .settings import Study
from .states import base_states
from .tuned import ARMS, Tuner, by_arm, queue

COMPARED = ("ndcg@10", "qwk", "mass_above", "rps", "nll", "ece")


def with_negatives(study: Study, work: Path) -> Study:
    """The study with BM25 runs for the sources that draw negatives from one; they are made once, with Lucene."""
    roles = {
        role: with_bm25_runs(Recipe(work / "study.toml", study.model, sources), work).sources
        for role, sources in study.roles.items()
    }
    return replace(study, roles=roles)


class StudyRun:
    """A study with its pairs, the base model's states and what is finished of it."""

    def __init__(self, study: Study, work: Path, argv: Sequence[str]) -> None:
        study = with_negatives(study, work)
        self.study, self.work, self.argv = study, work, argv
        self.checkpoint = initial_checkpoint(study.model)
        self.data = load_collections(study, self.checkpoint.encoder(), len(self.checkpoint.scale))
        self.tests = tests_of(self.data, study)
        folder = work / "states" / f"{self.checkpoint.fingerprint[:12]}-{self.data.digest}-{study.layers}"
        self.states = base_states(self.checkpoint, study.layers, self.data.pairs, folder)
        self.seed = lru_cache(maxsize=None)(self._seed)
        self.novelty = lru_cache(maxsize=None)(self._novelty)
        self.tuner = Tuner(
            study, self.data, self.tests, self.states, self.checkpoint, work / "tuned" / self.data.digest, self.seed
        )

    def _seed(self, number: int) -> Seed:
        return prepare_seed(self.data, self.study, self.states, self.checkpoint, number)

    def heads(self) -> None:
        """The screening level; its file is written after every seed."""
        runs: list[Run] = []
        for number in tqdm(range(self.study.head_seeds), unit="seed", desc="head only"):
            runs += self.heads_of(number)
            self.write_heads(runs)

    def heads_of(self, number: int) -> list[Run]:
        """All arms of the screening level with one seed."""
        folder = self.work / "heads" / self.data.digest
        jobs = [(arm, budget) for budget in self.study.budgets for arm in HEAD_ARMS if arm.strategy]
        jobs += [(arm, 0) for arm in (ZERO_SHOT, *HEAD_ARMS) if not arm.strategy]
        return [
            run_head_arm(
                arm, budget, self.seed(number), self.data, self.tests, self.study, self.states, self.checkpoint, folder
            )
            for arm, budget in tqdm(jobs, unit="arm", desc=f"seed {number}", leave=False)
        ]

    def write_heads(self, runs: Sequence[Run]) -> None:
        arms, budgets = by_arm(runs), self.study.budgets
        write_result(
            f"study_{self.study.name}_head",
            {
                "level": "head only, on frozen features of the zero-shot model",
                **self._facts(),
                "seeds": sorted({run.facts["seed"] for run in runs}),
                "arms": self._arms(arms),
                "claims": {str(b): {claim.name: judge(claim, arms, b) for claim in HEAD_CLAIMS} for b in budgets},
                "against_CE": {str(b): compare_all(arms, "CE", b, COMPARED) for b in budgets},
                "novelty": self.novelty(min((run.facts["seed"] for run in runs), default=0)),
            },
            argv=self.argv,
        )

    def tune(self, budgets: Collection[int], *, first_seed_only: bool = False) -> None:
        """The decisive level with some of the study's budgets.

        Its file is written first, with what an earlier run finished, and after every arm.
        """
        self.write_tuned()
        jobs = [job for job in queue(self.study) if job[1] in budgets]
        for arm, budget, number in jobs[: len(ARMS)] if first_seed_only else jobs:
            if self.tuner.run(arm, budget, number, only_kept=True) is None:
                print(f"{arm.name}, budget {budget}, seed {number}", file=sys.stderr, flush=True)
                self.tuner.run(arm, budget, number)
                self.write_tuned()

    def write_tuned(self) -> None:
        runs, missing = [], []
        for arm, budget, number in queue(self.study):
            found = self.tuner.run(arm, budget, number, only_kept=True)
            if found is None:
                missing.append({"arm": arm.name, "budget": budget, "seed": number})
            else:
                runs.append(found)
        if not runs:
            return
        arms, name, budgets = by_arm(runs), f"study_{self.study.name}", self.study.budgets
        values = {
            "level": f"LoRA fine-tuning of the last {self.study.layers} layers",
            **self._facts(),
            "arms": self._arms(arms),
            "claims": {str(b): {claim.name: judge(claim, arms, b) for claim in TUNED_CLAIMS} for b in budgets},
            "against_plain": {str(b): compare_all(arms, "plain", b, COMPARED) for b in budgets},
            "missing": missing,
            "novelty": self.novelty(min((run.facts["seed"] for run in runs), default=0)),
        }
        write_result(name, with_earlier(values, page.result(name)), argv=self.argv)

    def _facts(self) -> dict[str, Any]:
        return {
            "title": self.study.title,
            "settings": self.study.facts(),
            "data": {"roles": self.data.table(), "digest": self.data.digest, "cut_documents": self.states.truncated},
        }

    def _arms(self, arms: dict[tuple[str, int], dict[int, Run]]) -> list[dict[str, Any]]:
        kept = ("seed", "temperature", "alpha", "curve", "selection", "pairs", "training", "epochs", "norm")
        return [
            {
                "arm": name,
                "budget": budget,
                "seeds": sorted(runs),
                **described([runs[seed] for seed in sorted(runs)]),
                "runs": [{key: runs[s].facts[key] for key in kept if key in runs[s].facts} for s in sorted(runs)],
                "reliability": runs[min(runs)].facts["reliability"],
            }
            for (name, budget), runs in arms.items()
        ]

    def _novelty(self, number: int) -> dict[str, Any]:
        """How well novelty, fitted on a seed's training pairs, tells OOD test pairs from ID ones."""
        scores = self.seed(number).novelty.score(self.states.features[self.tests.rows])
        return {
            "seed": number,
            "groups": novelty_of_groups(scores, self.data, self.tests, self.study.resamples),
            "pool": pool_by_group(self.seed(number), self.data, self.study),
        }
