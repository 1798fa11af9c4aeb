"""A plain Starlette handler that calls sentence-transformers' CrossEncoder, to be measured beside `darl-rerank serve`.

    python plain_server.py CLASSIFIER MODEL

Each request runs in a thread, on MODEL written as a classifier of transformers, in the number format that our server
takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import uvicorn
from sentence_transformers import CrossEncoder
from speed.contenders import BATCH, whole_texts
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from darl_rerank import Checkpoint
from darl_rerank.engines.hardware import cpu_has_bfloat16
from serving.process import free_port, say


def main(classifier: str, model: str) -> None:
    checkpoint = Checkpoint.load(model)
    gains = checkpoint.scale.gains
    dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    longest = checkpoint.prompt.max_length
    encoder = CrossEncoder(classifier, max_length=longest, device="cpu", model_kwargs={"dtype": dtype})

    def scored(query: str, documents: list[str]) -> list[dict[str, Any]]:
        pairs = whole_texts(checkpoint, [(query, document) for document in documents])
        logits = encoder.predict(pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        relevance = (shares / shares.sum(axis=1, keepdims=True)) @ gains / gains[-1]
        return [{"index": int(i), "relevance_score": float(relevance[i])} for i in np.argsort(-relevance)]

    async def rerank(request: Request) -> JSONResponse:
        body = await request.json()
        return JSONResponse({"results": await run_in_threadpool(scored, body["query"], body["documents"])})

    port = free_port()
    say(port)
    uvicorn.run(
        Starlette(routes=[Route("/rerank", rerank, methods=["POST"])]), host="127.0.0.1", port=port, log_level="warning"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
