"""One run on disk and around it: its folder, cost, environment, progress, interrupts and use of the test set."""
