"""The folder of a run: checkpoints, config and people, and checks of all three."""
