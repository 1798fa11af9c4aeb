"""Measuring `darl-rerank serve`: server and clients in processes of their own, on the loopback address."""
