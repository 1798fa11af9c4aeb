"""Recipes: the settings of a training, and the reader of the TOML file that has them."""
