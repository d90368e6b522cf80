"""What a configuration would do on a cluster: seats, memory, step time, and a simulation with the real loop."""
