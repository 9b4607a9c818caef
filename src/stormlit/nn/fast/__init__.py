"""Faster forms of the parts, each equal to the plain one."""
