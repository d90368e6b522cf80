"""A run as one looks at it while it goes on, or afterwards: `negalign-ray top`."""
