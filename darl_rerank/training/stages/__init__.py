"""The stages of a training, a file each: `run(context, folder)` works in its folder and returns its result."""
