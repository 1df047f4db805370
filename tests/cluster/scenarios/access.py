from world import World
SCENARIOS: list = []
