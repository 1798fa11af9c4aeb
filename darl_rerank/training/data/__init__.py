"""Training data: collections and their pairs, checked for overlap, as examples, labels and features."""
