"""The loss OCC, the losses it is compared with, and their names."""
