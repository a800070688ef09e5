"""The training run: from a configuration to checkpoints, with Hugging Face's Trainer and DeepSpeed
as the engine.
"""
