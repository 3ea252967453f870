"""vLLM beneath the gateway: started, watched, restarted, and spoken to."""
