"""The training run, from a configuration to checkpoints, on HF's Trainer and DeepSpeed."""
