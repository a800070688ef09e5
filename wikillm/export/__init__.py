"""Convert a checkpoint of any ZeRO stage to a standard Hugging Face folder."""
