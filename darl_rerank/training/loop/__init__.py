"""The optimizer loop: which examples make a step, the steps themselves, the log, and what a resume reads."""
