"""How a model scores: margins, merges of outputs, what is served."""
