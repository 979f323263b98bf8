"""Tables, pictures and pages from results; computes no measurement of its own."""
