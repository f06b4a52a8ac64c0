"""Ratios and their intervals, tables, figures, pages, and the published values beside them."""
