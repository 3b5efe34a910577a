"""Networks, their weights and their counts."""
