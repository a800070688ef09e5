"""The token store on disk: read and write its manifest and its shard files."""
