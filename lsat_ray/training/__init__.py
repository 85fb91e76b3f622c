"""How an adapter is fitted: step loop, engines, penalties, checkpoints, memory."""
