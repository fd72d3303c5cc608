"""The two runners at work: interception, the session of a step, replay, drain, stats."""
