"""What all tests share: no network, one thread, and the tiny committed checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from darl_rerank import Reranker

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A checkpoint folder with two random layers; see make_tiny_model.py."""
    return TESTS / "tiny_model"


@pytest.fixture(scope="session")
def tiny_reranker(tiny_model: Path) -> Reranker:
    return Reranker.from_pretrained(tiny_model, engine="torch", device="cpu", precision="float32")


@pytest.fixture(scope="session")
def trec_dl_2019() -> Path:
    """Development data that may not be copied into the project; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("DARL_DATA", TESTS.parent.parent / "shared" / "data")) / "trec-dl-2019"
    if not folder.is_dir():
        pytest.skip("trec-dl-2019 is not at hand (set DARL_DATA to a folder that has it)")
    return folder
