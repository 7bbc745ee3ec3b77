"""When a fit stops: what the losses say, and whoever interrupts it."""
