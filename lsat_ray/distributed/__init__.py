"""The only room that imports Ray: replay, training sessions, search, serving, controller."""
