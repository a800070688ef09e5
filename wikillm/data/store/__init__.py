"""The token store on disk: its manifest, its files, and reading them."""
