"""`edge-agent codec`: what the block codecs make of a user's own signals, before anything is configured."""
