"""Makes tests/tiny_model: a two-layer random Llama with a byte-level tokenizer, as a checkpoint folder.

    python tests/make_tiny_model.py

It grades nonsense, but it runs every code path of a real checkpoint in milliseconds. The folder is committed; run
this only when the checkpoint format changes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from darl_rerank import Checkpoint, RelevanceScale
from darl_rerank.model.base_model import BaseModel

HERE = Path(__file__).resolve().parent
TEXT = [
    "Grade how well the document answers the query: None, Low, High, Perfect.",
    "laptop notebook computer garden hose printer toner cartridge battery cable",
    "which product is the best for the price and what does it do in the house",
    "the quick brown fox jumps over the lazy dog while it rains in the north of the country",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def make_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Wide enough that grades differ from text to text; the usual 0.02 would leave all logits near zero.
        initializer_range=0.25,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        tokenizer = make_tokenizer()
        make_model(len(tokenizer)).save_pretrained(base)
        tokenizer.save_pretrained(base)
        checkpoint = Checkpoint.from_base(base, RelevanceScale.named("trec4"))
        checkpoint = checkpoint.replace(base=BaseModel("tiny-random-llama"))
        checkpoint.save(HERE / "tiny_model", model=base, overwrite=True)


if __name__ == "__main__":
    main()
