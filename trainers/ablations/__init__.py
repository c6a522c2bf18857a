"""Rows of the paper's tables, and short trainings."""
