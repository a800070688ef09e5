"""Files of other machines and hubs, downloaded into a bounded cache."""
