"""Results beside one another: statistics, figures, the page, and what the numbers do not show."""
