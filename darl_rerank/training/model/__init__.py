"""The model while it is trained: weights, packed prompts, adapters, interpolation, predictions, temperature."""
