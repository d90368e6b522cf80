"""Measures of a model before and after: records and arrays in, figures with intervals out. No engine, no Ray."""
