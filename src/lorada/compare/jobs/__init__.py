"""Jobs in processes of their own, in the order of a queue: on this machine, or on a Ray cluster."""
