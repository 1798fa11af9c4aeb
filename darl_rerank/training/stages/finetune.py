"""Fine-tune: any loss, LoRA or all weights, one process or several.

`accelerate launch` starts it with as many processes as wanted (DDP, FSDP). A step's micro-batches are dealt out to the
processes in turn and their sums divided by the whole step's examples, so that the number of processes does not change
what is computed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from darl_rerank.engines.hardware import cpu_has_bfloat16
from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint
from darl_rerank.progress import Progress
from darl_rerank.trec.graded_pairs import read_graded_pairs

from ..context import LABELLED, WEIGHTS, Context
from ..data.examples import QueryExamples, check_variety, in_parts, query_examples
from ..loop.progress import ProgressLog
from ..loop.resume import newest_state
from ..loop.steps import MicroBatches, plan_steps
from ..loop.trainer import GradeTrainer
from ..model.grade_model import GradeModel, load_grade_model, save_weights, supervised_layers
from ..model.predict import training_device
from ..recipe.settings import FinetuneSettings
from ..work_folder import is_first_process

_LOADERS = 4
# A step has the documents of so many queries at least, however long their lists are.
_QUERIES_IN_A_STEP = 4


def run(context: Context, folder: Path, *, seed: int) -> dict[str, Any]:
    """Write the fine-tuned weights; returns `FinetuneOutcome` and the numbers of examples and queries."""
    checkpoint = Checkpoint.load(context.begun)
    exits = context.recipe.exits
    model = load_grade_model(checkpoint, context.recipe.trainable, exits=supervised_layers(exits), seed=seed)
    settings = replace(context.recipe.finetune, seed=seed)
    examples = _examples(context)
    outcome = finetune(
        model, checkpoint, examples, settings, folder, exit_weight=0.0 if exits is None else exits.weight,
        device=context.device, progress=context.progress,
    )  # fmt: skip
    if is_first_process():
        save_weights(folder / WEIGHTS, model.trainable_state())
    return {**asdict(outcome), "training_examples": sum(map(len, examples)), "queries": len(examples)}


def _examples(context: Context) -> list[QueryExamples]:
    """The original examples, as many as the recipe replays, and the selected ones."""
    recipe = context.recipe
    original = context.data.examples(recipe.grades)
    if recipe.select is None:
        return original
    path = context.work.path("labels") / LABELLED
    selected = query_examples(read_graded_pairs(path, grades=recipe.grades), recipe.grades)
    if recipe.replay is not None:
        # Enough of the original set to not forget it, not so much as to drown what was selected.
        random.Random(recipe.seed).shuffle(original)
        wanted = recipe.replay * sum(map(len, selected))
        kept, size = [], 0
        for example in original:
            if size >= wanted:
                break
            kept.append(example)
            size += len(example)
        original = kept
    return [*original, *selected]


@dataclass(frozen=True, slots=True)
class FinetuneOutcome:
    """What a fine-tuning did.

    Attributes:
        steps, examples: made in all.
        seconds: time spent in training, interrupted runs included.
        loss: mean over the last tenth of the steps.
        processes: how many took part.
    """

    steps: int
    examples: int
    seconds: float
    loss: float
    processes: int


def finetune(
    model: GradeModel,
    checkpoint: Checkpoint,
    examples: Sequence[QueryExamples],
    settings: FinetuneSettings,
    folder: str | Path,
    *,
    exit_weight: float = 0.0,
    device: str | None = None,
    progress: Progress = True,
) -> FinetuneOutcome:
    """Train `model` in place.

    Args:
        model: from `load_grade_model`.
        checkpoint: whose prompt, tokenizer and scale the examples are encoded with.
        examples: the training set.
        settings: how.
        folder: for what a resume needs and for the log, `log.jsonl`; an interrupted training goes on from there.
        exit_weight: what the loss of each of the model's exits counts.
        device: "cpu" to stay off a GPU.
        progress: see `darl_rerank.progress`.

    Raises:
        InputError: nothing to train on, one grade only, a step that can't be cut, or a number of processes that does
            not divide `micro_batches`.
    """
    folder = Path(folder)
    check_variety(examples)
    examples = in_parts(examples, max(1, settings.batch // _QUERIES_IN_A_STEP), settings.seed)
    plan = plan_steps(
        [len(example) for example in examples],
        batch=settings.batch,
        micro_batches=settings.micro_batches,
        epochs=settings.epochs,
        max_examples=settings.max_examples,
        seed=settings.seed,
    )
    batches = MicroBatches(examples, plan, checkpoint.encoder())
    cpu = training_device(device).type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=len(plan),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        use_cpu=cpu,
        bf16=cpu_has_bfloat16() if cpu else torch.cuda.is_bf16_supported(),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not cpu,
        # A CPU's cores are all at work on the step; a GPU would wait for the next one to be tokenised and packed.
        dataloader_num_workers=0 if cpu else _LOADERS,
        seed=settings.seed,
    )
    # A process that sees several GPUs would give each a part of a micro-batch, which can't be cut: it takes one. All of
    # them are used by one process each.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    world = arguments.world_size
    if settings.micro_batches % world:
        raise InputError(f"micro_batches = {settings.micro_batches} can't be dealt out to {world} processes")
    arguments.gradient_accumulation_steps = settings.micro_batches // world
    gains = torch.tensor(checkpoint.scale.gains, dtype=torch.float32)
    sizes = [sum(len(examples[i]) for part in step for i in part) for step in plan]
    first = arguments.should_save
    log = ProgressLog(folder, sizes, settings, write=first, show=first and progress)
    trainer = GradeTrainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=_only,
        callbacks=[log],
        settings=settings,
        exit_weight=exit_weight,
        gains=gains,
        groups=_group_shares(examples, batches.groups),
        log_file=log,
    )
    # Trainer's own messages go to the log file; what it prints at every log would break the progress bar.
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    state = newest_state(folder)
    with closing(log):
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
    model.eval()
    return FinetuneOutcome(log.step, log.examples, log.elapsed, log.recent_loss(), world)


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The one item: it already is a micro-batch."""
    (item,) = items
    return item


def _group_shares(examples: Sequence[QueryExamples], groups: Sequence[str]) -> Tensor:
    counts = torch.zeros(len(groups))
    for example in examples:
        counts[groups.index(example.group)] += float(example.weights.sum())
    return counts / counts.sum()
