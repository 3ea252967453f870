"""The HTTP API: its routes, what they accept, and how requests and replies are translated for vLLM."""
