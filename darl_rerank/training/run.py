"""Trains by a recipe. This file is the order of the stages; each is a file under `stages` with `run(context, folder)`.

What a stage returns and writes is kept in a folder of its own, and a finished stage is not run again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from darl_rerank.progress import Progress

from .context import Context
from .data.examples import check_variety
from .data.training_set import TrainingSet
from .recipe.settings import Recipe
from .stages import calibrate, deliver, evaluate, exits, finetune, label, merge, probe, select, start
from .stages.deliver import Trained
from .work_folder import is_first_process


def train_by(
    recipe: Recipe,
    data: TrainingSet,
    output: Path,
    work: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    progress: Progress = True,
) -> Trained | None:
    """Run all stages and write the checkpoint; what is finished in `work` is not run again.

    Args:
        recipe: what to do.
        data: its pairs.
        output: the checkpoint folder.
        work: for the stages.
        device: "cpu" to stay off a GPU.
        overwrite: replace an existing checkpoint.
        progress: see `darl_rerank.progress`.

    Returns:
        None in all but the first of several processes.

    Raises:
        AnnotationsWantedError: the chosen pairs wait for their grades.
        InputError: `work` is another training's, or a stage can't work with its data.
    """
    check_variety(data.examples(recipe.grades))
    training = Context.open(recipe, data, work, device=device, progress=progress)
    training.run("start", start.run)
    if recipe.probe is not None:
        training.run("probe", probe.run)
    if recipe.select is not None:
        training.run("select", select.run)
        training.run("labels", label.run, inputs=label.inputs(recipe.select))
    for seed in recipe.seeds:
        training.run(f"finetune-{seed}", partial(finetune.run, seed=seed), shared=True)
    if not is_first_process():
        return None
    training.run("merge", merge.run)
    if recipe.calibrate is not None and data.judged[1] and not training.kept_earlier:
        training.run("calibrate", calibrate.run)
    if recipe.exits is not None and not training.kept_earlier:
        training.run("exits", exits.run)
    if recipe.used_for("test", "ood_test"):
        training.run("evaluate", evaluate.run)
    return deliver.run(training, output, overwrite=overwrite)
