"""Solvers: pure state machines that propose what to evaluate next and are told the reduction."""
