"""lsat_ray: a streaming LLM recommender, replayed, compared and served on Ray."""

__version__ = "0.1.0"
