"""HTTP: parse, call, shape. Status codes live here and nowhere else."""
