"""Temporal modules, one file per paper."""
