"""Update strategies: rules that name adapters and a merge."""
