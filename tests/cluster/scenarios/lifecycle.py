"""The chart: installed, upgraded, tested, uninstalled."""

from world import World


SCENARIOS: list = []
