"""What an LLM recommender must beat."""
