"""The durable log and its look-up view: what server and learner share, and all that they share."""
