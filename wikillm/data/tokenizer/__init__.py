"""Find, download, train, check and open tokenizers; encode with the fastest exact encoder."""
