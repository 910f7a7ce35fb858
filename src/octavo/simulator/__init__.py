"""The same scheduler under a virtual clock: executors that compute nothing, and prove everything."""
