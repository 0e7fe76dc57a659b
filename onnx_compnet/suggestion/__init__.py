"""Where growing may pay: a score of each place without labels, one with labels, and what it costs."""
