"""The laws that every part of a kind keeps, and the trial of a part from outside."""
