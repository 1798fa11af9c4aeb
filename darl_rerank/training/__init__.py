"""The DaRL recipe: losses, sample selection (DASA), stages, interpolation, calibration."""
