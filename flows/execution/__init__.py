"""How a step runs: a child process, its supervision, DVC in it, or a worker of a pool."""
