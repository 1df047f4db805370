"""What goes on when a part is lost."""

SCENARIOS: list = []
