"""Measuring `darl-rerank serve`: a server process, clients in processes of their own, all on this machine's loopback."""
