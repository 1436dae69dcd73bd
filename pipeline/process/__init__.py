"""This process and others: its Python, threads, exit code and progress."""
