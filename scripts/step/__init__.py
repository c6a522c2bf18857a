"""What benchmark_step.py is made of."""
