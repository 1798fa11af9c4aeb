"""Which pairs of an unlabelled pool to have labelled (DASA), and the files for those who label them."""
