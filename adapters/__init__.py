"""Adapters: the reranker as a second stage of other people's search stacks.

Each module needs the package it is named after. Those whose classes derive from a framework's (`langchain`,
`llama_index`, `haystack`, `pyterrier`, `lancedb`, `mteb`) check its version and load it when they are imported; the
others load theirs when they are first called.
"""
