"""How many replicas a rate of requests takes: roofline, efficiency, service times, queue."""
