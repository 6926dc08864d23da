"""Lossy views: ways to run only part of a model in every pass, one file a method."""
