"""Fine-tuning with transformers' Trainer: any loss of `arms.LOSSES`, LoRA or all weights, one process or several.

`accelerate launch` starts it with as many processes as wanted (DDP, FSDP). A step's micro-batches are dealt out to the
processes in turn and their sums divided by the whole step's examples, so that the number of processes does not change
what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from darl_rerank.engines.hardware import cpu_has_bfloat16
from darl_rerank.errors import InputError
from darl_rerank.model.checkpoint import Checkpoint

from .arms import LOSSES, loss_named
from .grade_model import GradeModel
from .losses import OccWeights, occ_terms
from .predict import training_device
from .progress import ProgressLog
from .resume import load_optimizer, newest_state, save_optimizer
from .steps import MicroBatches, QueryExamples, plan_steps

_WEIGHTS = "trainable.safetensors"
_LOADERS = 4


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How to fine-tune.

    Attributes:
        loss: a name of `arms.LOSSES`.
        occ: weights of OCC's terms, for the loss "occ".
        learning_rate: its peak, reached after `warmup` of the steps and then falling along a cosine to a tenth.
        warmup: share of the steps, but at least ten steps or a quarter of them; 0 for none.
        weight_decay: of AdamW, not applied to the head.
        batch: examples in an optimizer step; whole queries, so it may be a few more.
        micro_batches: parts a step is cut into; must be a multiple of the number of processes.
        epochs: passes over the training set.
        max_examples: end after so many examples.
        max_minutes: end after so long; the learning rate then follows the time instead, whichever is further on.
        group_dro: step size of the group weights of group DRO; 0 for none.
        save_minutes: how often what a resume needs is written.
        seed: of the order, and of LoRA's start.
    """

    loss: str = "occ"
    occ: OccWeights = field(default_factory=OccWeights)
    learning_rate: float = 3e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    batch: int = 32
    micro_batches: int = 1
    epochs: float = 1.0
    max_examples: int | None = None
    max_minutes: float | None = None
    group_dro: float = 0.0
    save_minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        loss_named(self.loss)
        positive = ("learning_rate", "batch", "micro_batches", "epochs", "save_minutes")
        bad = [name for name in positive if not 0 < getattr(self, name) < math.inf]
        bad += [name for name in ("max_examples", "max_minutes") if (v := getattr(self, name)) is not None and v <= 0]
        bad += [name for name in ("weight_decay", "group_dro") if not 0 <= getattr(self, name) < math.inf]
        bad += ["warmup"] if not 0 <= self.warmup < 1 else []
        if bad:
            raise InputError(
                "fine-tuning: out of range: " + ", ".join(f"{name} = {getattr(self, name)}" for name in bad)
            )


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
    device: str | None = None,
    progress: bool = True,
) -> FinetuneOutcome:
    """Train `model` in place.

    Args:
        model: from `load_grade_model`.
        checkpoint: whose prompt, tokenizer and scale the examples are encoded with.
        examples: the training set.
        settings: how.
        folder: for what a resume needs and for the log, `log.jsonl`; an interrupted training goes on from there.
        device: "cpu" to stay off a GPU.
        progress: show rate, loss and time left on stderr.

    Raises:
        InputError: nothing to train on, one grade only, a step that can't be cut, or a number of processes that does
            not divide `micro_batches`.
    """
    folder = Path(folder)
    check_variety(examples)
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
    log = ProgressLog(folder, sizes, settings, write=first, show=progress and first)
    trainer = _GradeTrainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=_only,
        callbacks=[log],
        settings=settings,
        gains=gains,
        groups=_group_shares(examples, batches.groups),
        log_file=log,
    )
    # Trainer's own messages go to the log file; what it prints at every log would break the progress bar.
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    state = newest_state(folder)
    trainer.train(resume_from_checkpoint=None if state is None else str(state))
    model.eval()
    return FinetuneOutcome(log.step, log.examples, log.elapsed, log.recent_loss(), world)


def check_variety(examples: Sequence[QueryExamples]) -> None:
    """Raise InputError unless there are examples of at least two grades."""
    if not examples:
        raise InputError("there is nothing to train on")
    seen = {int(row.argmax()) for example in examples for row in example.targets}
    soft = any(float(row.max()) < 1 for example in examples for row in example.targets)
    if len(seen) < 2 and not soft:
        raise InputError(f"all training examples have grade {seen.pop()}: a model of it would learn nothing else")


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The one item: it already is a micro-batch."""
    (item,) = items
    return item


def _group_shares(examples: Sequence[QueryExamples], groups: Sequence[str]) -> Tensor:
    counts = torch.zeros(len(groups))
    for example in examples:
        counts[groups.index(example.group)] += float(example.weights.sum())
    return counts / counts.sum()


class _GradeTrainer(Trainer):  # type: ignore[misc]
    """Trainer with our loss, and with nothing pickled in what it saves."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, *, settings: FinetuneSettings, gains: Tensor, groups: Tensor, log_file: ProgressLog, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self.model_accepts_loss_kwargs = False
        self._settings, self._log_file = settings, log_file
        self._gains = gains.to(self.args.device)
        self._shares = groups.to(self.args.device)
        self._dro = self._shares.clone()
        self._group_sums = torch.zeros(2, len(groups), device=self.args.device)
        self._terms: dict[str, Tensor] = {}
        self.add_callback(_StepEnd(self._end_step))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(**inputs["inputs"])
        keywords: dict[str, Any] = {"queries": inputs["queries"], "gains": self._gains, "reduction": "none"}
        if self._settings.loss == "occ":
            terms = occ_terms(logits, inputs["targets"], terms=self._settings.occ, **keywords)
        else:
            terms = {self._settings.loss: LOSSES[self._settings.loss](logits, inputs["targets"], **keywords)}
        weights, groups = inputs["weights"], inputs["groups"]
        values = torch.stack(list(terms.values())).sum(0)
        if self._settings.group_dro:
            with torch.no_grad():
                self._group_sums[0].index_add_(0, groups, values.detach() * weights)
                self._group_sums[1].index_add_(0, groups, weights)
            weights = weights * (self._dro / self._shares)[groups]
        for name, value in terms.items():
            part = (value.detach() * inputs["weights"]).sum() * inputs["share"]
            self._terms[name] = self._terms.get(name, torch.zeros_like(part)) + part
        loss = (values * weights).sum() * inputs["share"]
        # Trainer divides by the accumulation steps, DDP by the processes: `share` has already made this a mean.
        return loss * self._settings.micro_batches

    def _end_step(self) -> bool:
        """After an optimizer step: group weights, log. Returns whether time is up, in all processes alike."""
        names = list(self._terms)
        over = float(self._log_file.time_is_up())
        sums = torch.stack([*(self._terms[name] for name in names), torch.tensor(over, device=self.args.device)])
        if self.args.world_size > 1:
            torch.distributed.all_reduce(sums)
            if self._settings.group_dro:
                torch.distributed.all_reduce(self._group_sums)
        if self._settings.group_dro:
            sums_of, counts = self._group_sums
            seen = counts > 0
            means = torch.where(seen, sums_of / counts.clamp_min(1e-12), torch.zeros_like(counts))
            self._dro = self._dro * torch.exp(self._settings.group_dro * means)
            self._dro = self._dro / self._dro.sum()
            self._group_sums.zero_()
        values = dict(zip(names, sums[:-1].tolist(), strict=True))
        self._terms = {}
        groups = self._dro.tolist() if self._settings.group_dro else None
        self._log_file.finish_step(values, self._get_learning_rate(), groups)
        return bool(sums[-1] > 0)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            named = [(n, p) for n, p in (model or self.model).named_parameters() if p.requires_grad]
            head = [p for n, p in named if "head." in n and ".lm." not in n and not n.startswith("lm.")]
            inside = {id(p) for p in head}
            body = [p for _, p in named if id(p) not in inside]
            parts: list[dict[str, Any]] = [{"params": body}] if body else []
            parts.append({"params": head, "weight_decay": 0.0})
            self.optimizer = torch.optim.AdamW(
                parts,
                lr=self.args.learning_rate,
                betas=(0.9, 0.98),
                weight_decay=self.args.weight_decay,
                fused=True,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            schedule = learning_rate_schedule(
                num_training_steps, self._settings.warmup, self._log_file.share_of_time_used
            )
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # What a resume needs. Trainer would write optimizer, scheduler, random state and its own arguments with torch.save,
    # which is pickle: a folder that somebody hands on could run code when it is read. Tensors go into safetensors,
    # numbers into JSON. A model sharded by FSDP is left to accelerate's own sharded format.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            from .grade_model import save_weights

            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(folder / _WEIGHTS, self.accelerator.unwrap_model(self.model).trainable_state())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        from safetensors.torch import load_file

        own = self.accelerator.unwrap_model(model if model is not None else self.model)
        own.load_trainable(load_file(Path(resume_from_checkpoint) / _WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            extra = {"log": self._log_file.state(), "group_weights": self._dro.tolist()}
            save_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler, extra)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            extra = load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            self._log_file.restore(extra["log"])
            self._dro = torch.tensor(extra["group_weights"], device=self.args.device)

    def _save_rng_state(self, output_dir: str) -> None:
        """Nothing: the plan is made beforehand, and dropout, if any, is seeded anew at a resume."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            torch.manual_seed(self.args.seed + self.state.global_step)


class _StepEnd(TrainerCallback):  # type: ignore[misc]
    """Calls `end` after each optimizer step and stops or saves when it is time."""

    def __init__(self, end: Callable[[], bool]) -> None:
        self._end = end

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._end():
            control.should_training_stop = True


def learning_rate_schedule(
    steps: int, warmup: float, time_used: Callable[[], float], floor: float = 0.1
) -> Callable[[int], float]:
    """The factor on the peak learning rate at a step: linear warm-up, then a cosine down to `floor`.

    Args:
        steps: in all.
        warmup: share of the steps.
        time_used: share of the time limit that is used up; 0 without one. Where time runs out before the steps do, the
            cosine follows the time, so that a training cut by the clock also ends at a low rate.
    """
    # A short training needs a warm-up too: Adam's first steps are all of full size, whatever the gradient.
    rising = max(1, round(steps * warmup), min(10, steps // 4)) if warmup else 1

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = max((step - rising) / max(1, steps - rising), time_used())
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor
