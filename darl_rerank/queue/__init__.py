"""The queue that fills batches across calls: of a server's requests, and of asynchronous calls in one process."""
