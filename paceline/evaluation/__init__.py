"""Measuring: workloads, timing, peers, reports."""
