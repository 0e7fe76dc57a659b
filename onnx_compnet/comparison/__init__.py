"""Every method at one site, on the same samples: widths, sizes, errors, seconds, and what training makes of them."""
