"""From a model preset to an initialised Hugging Face model, also under ZeRO-3."""
