"""What people would write instead, to be measured beside `darl-rerank serve`.

    python other_servers.py litserve MODEL [LARGEST BATCH]
    python other_servers.py plain CLASSIFIER MODEL

`litserve`: darl-rerank's own Reranker in LitServe, which fills batches of up to so many requests. `plain`: a Starlette
handler that calls sentence-transformers' CrossEncoder in threads, on MODEL written as a classifier of transformers, in
the number format that our server takes.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def litserve(model: str, largest_batch: int) -> None:
    import litserve

    class RerankApi(litserve.LitAPI):
        def setup(self, device: str) -> None:
            from darl_rerank import Reranker

            self.reranker = Reranker.from_pretrained(model)
            self.reranker.rerank("warm", ["up"] * 8)

        def decode_request(self, request: Any) -> Any:
            return request

        def predict(self, x: Any) -> Any:
            asked = x if isinstance(x, list) else [x]
            rankings = self.reranker.rerank_many([a["query"] for a in asked], [a["documents"] for a in asked])
            largest = self.reranker.scale.gains[-1]
            answers = [
                {"results": [{"index": r.index, "relevance_score": (r.score or 0) / largest} for r in ranking]}
                for ranking in rankings
            ]
            return answers if isinstance(x, list) else answers[0]

        def encode_response(self, output: Any) -> Any:
            return output

    api = RerankApi(max_batch_size=largest_batch, batch_timeout=0.01, api_path="/rerank")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    port = free_port()
    say(port)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", num_api_servers=1)


def plain(classifier: str, model: str) -> None:
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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def say(port: int) -> None:
    print(f"listens on http://127.0.0.1:{port}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    kind, model_folder, *more = sys.argv[1:]
    if kind == "litserve":
        litserve(model_folder, int(more[0]) if more else 1)
    else:
        plain(model_folder, more[0])
