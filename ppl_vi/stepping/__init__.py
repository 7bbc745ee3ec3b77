"""One step of a fit: gradients, learning rate, optimizer, and the way back from numbers not finite."""
