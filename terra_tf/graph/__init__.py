"""From a TraceGraph to a TensorFlow function: op classes, folding, epochs, generator."""
