"""Checkpoint: everything a model needs, as one value. `folder` reads and writes the folder that holds it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_folder, check_output_folder
from .base_model import BaseModel
from .calibration import Calibration
from .card import whole_card, with_license
from .decisions import Decisions, GradeCuts
from .exits import Exits
from .export_record import ExportRecord
from .faults import file_faults
from .fingerprint import fingerprint
from .folder import read_folder, write_folder
from .head import Head, Link
from .hub import CARD, push
from .novelty import NoveltyModel
from .prompt import Prompt, PromptEncoder
from .reach import Reach
from .scale import RelevanceScale
from .shipped import checkpoint_folder

GRAPH = "model.onnx"
PREFIX_GRAPH = "model_with_prefix.onnx"
# Of an export with early exits: its parts from exit to exit, counted from 0.
SEGMENT_GRAPH = "model_segment_{}.onnx"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a model needs; immutable, changed by `replace` and written by `save`.

    Attributes:
        scale: the grades.
        prompt: the text around query and document.
        tokenizer_json: content of tokenizer.json.
        head: K rows.
        base: the decoder LLM it stands on.
        feature_layer: index into the hidden states whose vectors are the middle part of the novelty features.
        calibration: grade logits to probabilities.
        decisions: cut points between grades, cuts that hold a promise, the weight in a fusion.
        link: how the head's outputs make a distribution over the grades, see `head.grade_logits`.
        novelty: statistics for the novelty score, None before training.
        reach: statistics for reranking to a depth="auto"; None if they were not fitted.
        exits: heads at earlier layers and the rule by which pairs leave there; None without.
        layers: behind which of the base's layers the model ends, counted from 1; None for the last.
        prefill_layers: how many layers run all tokens. Behind them only the last token goes on, and the keys and values
            of each later layer are made of what all tokens are here (SwiftKV's SingleInputKV, Qiao et al. 2024,
            arXiv 2410.03960); None where each layer makes them of what the tokens are there.
        finer_products: by number format the products that an export was found to need in its finer way, which the next
            export tries first; they decide no result of the checkpoint itself.
        trained: False for a checkpoint that only `from_base` has made, which grades zero-shot.
        provenance: data, recipe and figures of its training, for the model card; JSON types. Documentation: nothing
            reads it to decide anything.
        export: how the ONNX graphs beside it were made; None for a folder without any.
        folder: where it was loaded from, which holds adapter or weights; None before the first `save`.
        sha256: digest of every file in `folder`, by relative path.
    """

    scale: RelevanceScale
    prompt: Prompt
    tokenizer_json: str
    head: Head
    base: BaseModel
    feature_layer: int
    calibration: Calibration = field(default_factory=Calibration.identity)
    decisions: Decisions = field(default_factory=Decisions)
    link: Link = "softmax"
    novelty: NoveltyModel | None = None
    reach: Reach | None = None
    exits: Exits | None = None
    layers: int | None = None
    prefill_layers: int | None = None
    finer_products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trained: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    export: ExportRecord | None = None
    folder: Path | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_base(
        cls, base: str | Path, scale: RelevanceScale, prompt: Prompt | None = None, *, prefill_layers: int | None = None
    ) -> Checkpoint:
        """An untrained checkpoint whose head comes from the grade words' rows of the base model's LM head.

        Args:
            base: "smollm2", a local folder with a transformers decoder LLM, or a hub id.
            scale: the grades; two grades whose words begin with the same token can't be told apart.
            prompt: `Prompt.default(scale)` if None.
            prefill_layers: see the class; such a model has to be trained before its scores mean anything.

        Raises:
            InputError: the base can't be read, it has no more layers than `prefill_layers`, or the grade words collide
                under its tokenizer.
            MissingDependencyError: torch or transformers is not installed.
        """
        from .base_weights import read_base

        return cls(scale=scale, **read_base(base, scale, prompt, prefill_layers))

    @classmethod
    def from_reranker(
        cls,
        model: str | Path,
        *,
        family: str | None = None,
        task: str | None = None,
        scale: RelevanceScale | None = None,
        max_length: int | None = None,
    ) -> Checkpoint:
        """A checkpoint of a reranker that answers with one token, with the prompt and the scores of its authors.

        Args:
            model: a local folder or a hub id.
            family: one of `rerankers.FAMILIES`; what the model's name says if None.
            task: what the model is asked to judge; its authors' own if None.
            scale: other grades than the two of its answers. They order documents as these do, and are where a
                fine-tuning to more grades begins.
            max_length: longest prompt in tokens; the authors' own if None.

        Raises:
            InputError: the model can't be read, its family is unknown, or its tokens are not the family's.
            MissingDependencyError: torch or transformers is not installed.
        """
        from .rerankers import read_reranker

        return cls(**read_reranker(model, family=family, task=task, scale=scale, max_length=max_length))

    @classmethod
    def load(cls, model: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Read a checkpoint and check that every file is there and is what was saved.

        Args:
            model: its folder, the name of one that ships (`darl_rerank.model.shipped.shipped_names`), or its name on
                the Hugging Face hub, "org/name" or "org/name@revision".
            revision: a branch, tag or commit on the hub; the main branch if None.

        Raises:
            InputError: not a checkpoint, or a faulty one: a file is missing or was changed, a value of the manifest is
                not what it should be, parts don't fit together, or the format is newer than this version. All faults
                are listed.
            DarlRerankError: the hub was not reached, and its cache does not have the model.
        """
        folder = checkpoint_folder(model, revision)
        return cls(folder=folder, **read_folder(folder))

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        adapter: Path | None = None,
        model: Path | None = None,
        card: str | None = None,
    ) -> Checkpoint:
        """Write the folder, an export's graphs included, whole or not at all; returns the checkpoint as loaded from it.

        Args:
            folder: where to.
            overwrite: replace an existing checkpoint.
            adapter: a folder with a PEFT adapter, copied in; the loaded one's adapter is kept if neither is given.
            model: a folder with the whole model's weights, copied in.
            card: text of README.md; a short one is written if None and the loaded one had none.

        Raises:
            DarlRerankError: `folder` exists and `overwrite` is false, or can't be written.
        """
        if adapter is None and model is None and self.folder is not None:
            adapter, model = self.adapter_folder, self.model_folder
        if card is None and self.folder is not None and (self.folder / CARD).is_file():
            card = (self.folder / CARD).read_text("utf-8")
        check_output_folder(folder, overwrite=overwrite)
        with atomic_folder(folder, overwrite=overwrite) as temporary:
            if self.export is not None and self.folder is not None:
                for path in self.folder.iterdir():
                    if path.is_file():
                        shutil.copyfile(path, temporary / path.name)
            self.write_into(temporary, adapter=adapter, model=model, card=card)
        return Checkpoint.load(folder)

    def write_into(
        self, folder: Path, *, adapter: Path | None = None, model: Path | None = None, card: str | None = None
    ) -> None:
        """Write the files into an existing folder and seal whatever else already is there (an export's ONNX files)."""
        write_folder(self, folder, adapter=adapter, model=model, card=card)

    def push_to_hub(
        self,
        repository: str,
        *,
        license: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the saved folder to the Hugging Face hub in one commit, and return that commit's address.

        Args:
            repository: "org/name"; made if it is not there.
            license: the weights' licence for the card, such as "apache-2.0"; what the card says if None.
            revision: the branch, made if it is not there; the main branch if None.
            private: whether a repository that is made is private; as the account or organisation has it if None.
            message: of the commit.
            token: of the account; the one that `hf auth login` or HF_TOKEN gave if None.

        Raises:
            InputError: never saved, changed since, on a base model that only this machine has, or a repository that
                the account may not write.
            DarlRerankError: the hub was not reached or refused.
        """
        if self.folder is not None and (faults := file_faults(self.folder, self.sha256)):
            raise InputError("; ".join(faults), path=self.folder)
        path = None if self.folder is None else self.folder / CARD
        text = path.read_text("utf-8") if path is not None and path.is_file() else None
        card = self.card(text)
        if license is not None:
            card = with_license(card, license)
        return push(self, repository, card=card, revision=revision, private=private, message=message, token=token)

    def card(self, text: str | None = None) -> str:
        """A model card: `text`, a short one if None, under the metadata that hubs read, unless it has some.

        Args:
            text: Markdown.
        """
        return whole_card(self, text)

    def ending_at(self, layer: int) -> Checkpoint:
        """The model that ends behind an exit: its head is this one's, the base's later layers are not run.

        What was fitted to the whole model's scores is left out (grades, cuts, `reach`), and novelty if it looks at the
        last layer or at one that is gone: `darl-rerank calibrate` fits it anew. The exits before stay.

        Args:
            layer: of the exit, counted from 1.

        Raises:
            InputError: there is no exit behind that layer, or the folder is an export, whose graphs have all layers.
        """
        if self.exported:
            raise InputError("is an export, whose graphs have all layers; shorten the checkpoint it was made from",
                             path=self.folder)  # fmt: skip
        if self.exits is None:
            raise InputError(f"has no exits, so it can't end behind layer {layer}", path=self.folder)
        end, novelty = self.exits.at(layer), self.novelty
        hidden = self.head.weight.shape[1]
        if novelty is not None and (self.feature_layer > layer or novelty.weights[-hidden:].any()):
            novelty = None
        return self.replace(
            head=end.head, layers=layer, feature_layer=min(self.feature_layer, layer), calibration=end.calibration,
            # No exit lies behind them, so all tokens run all layers that are left.
            prefill_layers=None, exits=self.exits.before(layer), novelty=novelty, reach=None,
            decisions=Decisions(fusion=self.decisions.fusion),
        )  # fmt: skip

    @property
    def grade_cuts(self) -> GradeCuts:
        """Where on the score one grade ends and the next begins; between the gains if it was not fitted."""
        return self.decisions.grades or GradeCuts.nearest(self.scale)

    @property
    def adapter_folder(self) -> Path | None:
        return self._part("adapter")

    @property
    def model_folder(self) -> Path | None:
        return self._part("model")

    @property
    def exported(self) -> bool:
        """Whether the folder holds an ONNX graph."""
        return self.folder is not None and (self.folder / GRAPH).is_file()

    def _part(self, name: str) -> Path | None:
        path = None if self.folder is None else self.folder / name
        return path if path is not None and path.is_dir() else None

    def encoder(self) -> PromptEncoder:
        return _encoder(self.prompt, self.tokenizer_json)

    def replace(self, **changes: Any) -> Checkpoint:
        return replace(self, **changes)

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides a result: two checkpoints with the same fingerprint grade the same."""
        return fingerprint(self)


@lru_cache(maxsize=2)
def _encoder(prompt: Prompt, tokenizer_json: str) -> PromptEncoder:
    """Reranker and engine both want one, and reading a tokenizer takes a tenth of a second."""
    return PromptEncoder(prompt, tokenizer_json)
