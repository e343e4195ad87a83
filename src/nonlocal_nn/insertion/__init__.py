"""Non-local blocks put into a network that is built already."""
