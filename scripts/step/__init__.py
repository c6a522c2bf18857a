"""What benchmark_step.py and benchmark_start.py are made of."""
