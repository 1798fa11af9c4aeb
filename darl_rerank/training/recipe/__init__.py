"""Recipes: what a training may be told, and the reader of the file that says it."""
