"""What answers beside HTTP, and how what is served changes: desk, endpoint, metrics, promotion, one process."""
