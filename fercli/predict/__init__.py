"""Pictures and videos in, answers out: what `fercli predict` is made of."""
