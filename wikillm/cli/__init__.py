"""The commands: one file each, its heavy imports inside `run`. Only this room prints."""
