"""Fitting of what a checkpoint decides from its scores: grades, cuts with a guarantee, fusion."""
