"""The queue of jobs: runs them one after another, in several processes, or on a cluster."""
