"""Random models of the rerankers' architectures, with tokenizers that cut text as theirs do.

The vocabularies are small and learned here. What decides how a prompt is cut are the special tokens and the rules that
come before the vocabulary, and those are the models' own: Qwen's regular expression; Gemma's spaces as ▁, which begin a
piece, and lines' ends that stand alone.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = [
    "yes no Yes No 0 1 yes no Yes No 0 1 yes no Yes No 0 1",
    "What is the capital of China?\nIs it so?\n\n\n",
    "The capital of China is Beijing. (It has been, since 1949.)\n",
    "Judge whether the Document meets the requirements based on the Query: query: document: Instruct:\n",
    "A: query B: passage Given a query A and a passage B, determine whether the passage contains an answer.\n",
    "laptop notebook computer garden hose printer toner cartridge battery cable " * 2,
]
MODEL_TYPES = {"qwen3-reranker": "qwen3", "mxbai-rerank-v2": "qwen2", "bge-reranker-v2-gemma": "gemma"}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A stand-in for the family's tokenizer."""
    gemma = family == "bge-reranker-v2-gemma"
    special = ["<pad>", "<eos>", "<bos>"] if gemma else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
        ])  # fmt: skip
        tokenizer.decoder = decoders.Replace("▁", " ")
        alphabet = sorted(set("▁\n\t" + string.printable[:94] + "öß…é日本"))
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if not gemma:
        # As Qwen3 has them: tokens of their own, but not special ones.
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        eos_token=special[1] if gemma else special[2],
        bos_token="<bos>" if gemma else None,
    )


def save_model(family: str, folder: Path, tokenizer: Any = None) -> Path:
    """A random model of the family's architecture in `folder`, with `tokenizer` or the stand-in."""
    tokenizer = tokenizer_of(family) if tokenizer is None else tokenizer
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        MODEL_TYPES[family],
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        # Wide enough that answers differ from text to text.
        initializer_range=0.2,
        tie_word_embeddings=family != "mxbai-rerank-v2",
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
