"""How many bytes things take: what is held, what a pass needs, and how sizes are written."""
