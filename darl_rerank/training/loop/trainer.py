"""The optimizer steps: transformers' Trainer with this package's losses, and with nothing pickled in what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..losses.comparison import LOSSES
from ..losses.occ import occ_terms
from ..recipe.settings import FinetuneSettings
from .progress import ProgressLog
from .resume import load_optimizer, save_optimizer

_WEIGHTS = "trainable.safetensors"


class GradeTrainer(Trainer):  # type: ignore[misc]
    """Trainer with our loss, and with nothing pickled in what it saves."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *,
        settings: FinetuneSettings,
        exit_weight: float,
        gains: Tensor,
        groups: Tensor,
        log_file: ProgressLog,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.model_accepts_loss_kwargs = False
        self._settings, self._exit_weight, self._log_file = settings, exit_weight, log_file
        self._gains = gains.to(self.args.device)
        self._shares = groups.to(self.args.device)
        self._dro = self._shares.clone()
        self._group_sums = torch.zeros(2, len(groups), device=self.args.device)
        self._terms: dict[str, Tensor] = {}
        self.add_callback(_StepEnd(self._end_step))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits, *of_exits = model(**inputs["inputs"])
        terms = self._losses(logits, inputs)
        weights, groups = inputs["weights"], inputs["groups"]
        values = torch.stack(list(terms.values())).sum(0)
        if self._settings.group_dro:
            with torch.no_grad():
                self._group_sums[0].index_add_(0, groups, values.detach() * weights)
                self._group_sums[1].index_add_(0, groups, weights)
            weights = weights * (self._dro / self._shares)[groups]
        if of_exits:
            # Deep supervision; group DRO goes by the loss of the whole model.
            exits = torch.stack([torch.stack(list(self._losses(each, inputs).values())).sum(0) for each in of_exits])
            terms["exits"] = self._exit_weight * exits.sum(0)
            values = values + terms["exits"]
        for name, value in terms.items():
            part = (value.detach() * inputs["weights"]).sum() * inputs["share"]
            self._terms[name] = self._terms.get(name, torch.zeros_like(part)) + part
        loss = (values * weights).sum() * inputs["share"]
        # Trainer divides by the accumulation steps, DDP by the processes: `share` has already made this a mean.
        return loss * self._settings.micro_batches

    def _losses(self, logits: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The loss's terms of each example, shape (n,), by name."""
        keywords: dict[str, Any] = {"queries": inputs["queries"], "gains": self._gains, "reduction": "none"}
        if self._settings.loss == "occ":
            return occ_terms(logits, inputs["targets"], terms=self._settings.occ, **keywords)
        return {self._settings.loss: LOSSES[self._settings.loss](logits, inputs["targets"], **keywords)}

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
            head = [
                p
                for n, p in named
                if ("head." in n or "exit_heads." in n) and ".lm." not in n and not n.startswith("lm.")
            ]
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
            from ..model.grade_model import save_weights

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
