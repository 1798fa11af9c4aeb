"""darl-rerank's own Reranker in LitServe, to be measured beside `darl-rerank serve`.

    python litserve_server.py MODEL [LARGEST BATCH]

LitServe fills batches of up to so many requests and runs them in a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import litserve

from darl_rerank import Reranker
from serving.process import free_port, say


class RerankApi(litserve.LitAPI):  # type: ignore[misc]
    """The same answers as our server's, without grades."""

    def setup(self, device: str) -> None:
        self.reranker = Reranker.from_pretrained(sys.argv[1])
        self.reranker.warm_up()

    def predict(self, x: Any) -> Any:
        asked = x if isinstance(x, list) else [x]
        rankings = self.reranker.rerank_many([a["query"] for a in asked], [a["documents"] for a in asked])
        largest = self.reranker.scale.gains[-1]
        answers = [
            {"results": [{"index": r.index, "relevance_score": (r.score or 0) / largest} for r in ranking]}
            for ranking in rankings
        ]
        return answers if isinstance(x, list) else answers[0]


if __name__ == "__main__":
    api = RerankApi(max_batch_size=int(sys.argv[2]) if len(sys.argv) > 2 else 1, batch_timeout=0.01, api_path="/rerank")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=300)
    port = free_port()
    say(port)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", num_api_servers=1)
