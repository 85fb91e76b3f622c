"""One experiment in its folder: plan, train, choose, score, record, over any backend."""
