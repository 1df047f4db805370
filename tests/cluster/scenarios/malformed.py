"""Objects that nobody should have written."""

SCENARIOS: list = []
