"""A fit in several processes: who they are, which rows each of them has, and what they sum."""
