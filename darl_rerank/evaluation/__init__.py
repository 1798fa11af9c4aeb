"""Measures of rankings, grades, calibration and novelty, and their report. Nothing here knows of models."""
