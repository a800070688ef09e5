"""The ground floor: errors, units, files, world, log. Imports nothing from the other rooms, and no torch."""
