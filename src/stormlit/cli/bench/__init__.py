"""Measuring: how long each phase of training takes, what it launches, and where it makes the host wait."""
