"""Java is called by one thread at a time, whatever part of the adapters calls it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from darl_rerank.adapters.lucene import LuceneDocuments, lucene_hits, lucene_search
from darl_rerank.adapters.pyserini import RerankingSearcher, ensure_jvm, rerank_hits

from darl_rerank import Reranker


class Java:
    """Stands for what must be called by one thread at a time: searcher, hit and document in one."""

    docid = "d1"
    score = 1.0
    num_docs = 1

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self.overlaps = 0
        self.calls = 0

    def _call(self) -> None:
        free = self._busy.acquire(blocking=False)
        self.overlaps += not free
        self.calls += 1
        time.sleep(0.002)
        if free:
            self._busy.release()

    def search(self, query: str, k: int) -> list[Java]:
        self._call()
        return [self]

    def batch_search(self, queries: list[str], qids: list[str], k: int, threads: int) -> dict[str, list[Java]]:
        self._call()
        return {qid: [self] for qid in qids}

    def doc(self, docid: str) -> Java:
        self._call()
        return self

    @property
    def lucene_document(self) -> Java:
        return self

    def get(self, name: str) -> str:
        self._call()
        return "black toner"


def test_java_is_called_by_one_thread_at_a_time(tiny_reranker: Reranker) -> None:
    """pyjnius shares the object of a call between threads; on real objects the harm is done now and then only."""
    ensure_jvm()  # else the import of jnius would start a JVM that knows no Lucene
    java = Java()
    reranking = RerankingSearcher(java, tiny_reranker, depth=1)
    documents = LuceneDocuments(java)

    def work() -> None:
        for _ in range(3):
            reranking.search("toner", k=1)
            reranking.batch_search(["toner"], ["1"], k=1)
            rerank_hits(tiny_reranker, "toner", [java])
            assert "d1" in documents
            assert documents["d1"].text == "black toner"
            assert [entry.docid for entry in lucene_search(java, {"1": "toner"}, k=1)["1"]] == ["d1"]
            assert lucene_hits(java, "toner", 1) == [java]

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result(timeout=60)
    assert java.calls > 4 * 3 * 7
    assert java.overlaps == 0
