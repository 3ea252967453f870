"""The server: an OpenAI-compatible gateway in front of vLLM, and the command line."""
