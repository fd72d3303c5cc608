"""What a step did: locations, records, traces, and the TraceGraph they merge into.

Nothing here needs native code or a running session; `recorder` is what a session drives.
"""
