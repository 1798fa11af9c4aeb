"""The HTTP server: every reranking client's request in, graded rankings out."""
