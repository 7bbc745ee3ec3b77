"""The same variational fits by several libraries, one process each; see ``compare_peers.py``."""
