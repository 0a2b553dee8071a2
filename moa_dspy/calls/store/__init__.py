"""The call store: a database of answers, shared by threads, processes and machines."""
