"""What a checkpoint is: its files, scale, prompt, calibration, novelty and base model."""
