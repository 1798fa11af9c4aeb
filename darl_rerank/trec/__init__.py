"""TREC files: runs, qrels, topics, corpora, and the journal of a resumable job. Nothing here knows of models."""
