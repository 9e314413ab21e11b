"""Planning: batch sizes, workers, servers, pace and exchange for a job, before it runs."""
