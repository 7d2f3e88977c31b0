"""Which plans are worth building: a search is a state, moves and a loop; the loop is `search`."""
