"""The papers' studies as data, and what runs them and writes their tables."""
