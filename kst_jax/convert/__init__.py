"""The authors' PyTorch checkpoints as this library's."""
