"""Ordinary differential equations dy/dt = f(t, y), and their solvers."""
