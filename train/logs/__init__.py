"""What a run reports while it trains: metrics, events, progress, throughput, traces, curves."""
